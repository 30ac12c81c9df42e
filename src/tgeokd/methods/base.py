"""What a method is: it decides, for every sample, how the teacher's signal and the label enter the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel import Hypergradient, Lookahead
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.utils.errors import InputError

__all__ = ["Batch", "Method", "Outer", "SampleLoss", "Signals", "TrainingStep"]

Outer = Literal["holdout", "union", "train"]


def check_outer(outer: str, batch_size: int | None) -> None:
    """Refuse an unknown source of outer batches, or an impossible size."""
    if outer not in get_args(Outer):
        raise InputError(f"outer must be one of {', '.join(get_args(Outer))}, not {outer!r}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"outer_batch_size must be >= 1, not {batch_size}")


@dataclass
class Signals:
    """What is known of a batch when its loss is decided.

    Attributes:
        student_logits: shape (N, C), attached to the student's graph.
        teacher_logits: shape (N, C); None only for methods that need no teacher.
        target: class indices, shape (N,).
        temperature: ``tau`` of the teacher term.
        epoch: index of the running epoch, from 0.
        epochs: how many there will be.
    """

    student_logits: Tensor
    teacher_logits: Tensor | None
    target: Tensor
    temperature: float
    epoch: int = 0
    epochs: int = 1

    @cached_property
    def kd(self) -> Tensor:
        """Teacher term of each sample, shape (N,)."""
        return kd_loss(self.student_logits, self.teacher, self.temperature)

    @cached_property
    def gt(self) -> Tensor:
        """Label term of each sample, shape (N,)."""
        return gt_loss(self.student_logits, self.target)

    @property
    def teacher(self) -> Tensor:
        """The teacher's logits, for a method that cannot do without."""
        if self.teacher_logits is None:
            raise InputError("this method needs a teacher, and none was given")
        return self.teacher_logits


class SampleLoss(NamedTuple):
    """A batch's loss before reduction.

    Attributes:
        loss: shape (N,).
        alpha: weight of the teacher term as a share of both, shape (N,), for the record; None where a method has none.
    """

    loss: Tensor
    alpha: Tensor | None


@dataclass
class Batch:
    """A batch on the student's device: inputs of N samples, class indices (N,), teacher logits (N, C) and ids (N,) or None."""

    inputs: Any
    target: Tensor
    teacher_logits: Tensor | None = None
    ids: Tensor | None = None


@dataclass
class TrainingStep:
    """One optimizer step as the bilevel methods see it.

    Attributes:
        index: how many steps came before, from 0.
        lookahead: runs the student and takes the step.
        batches: its micro-batches.
        outer: draws the next batch for the outer problem.
        losses: what the method's ``loss`` returned, one a micro-batch; filled as the step goes on.
    """

    index: int
    lookahead: Lookahead
    batches: list[Batch]
    outer: Callable[[], Batch]
    losses: list[SampleLoss] = field(default_factory=list)


class Method:
    """Base of all methods. A method gives :meth:`alpha`, or its own :meth:`loss`; everything else is optional.

    Attributes:
        name: what the registry and the command line call it.
        search_space: options worth searching, each with the values to try.
        needs_teacher: whether a teacher must be given.
        needs_class_means: whether :meth:`prepare` must be given the teacher's class means.
        outer: where held-out batches come from; None for a method without an outer problem.
        looks_ahead: whether it differentiates through the optimizer's step, whose derivative must then be known.
        outer_needs_teacher: whether held-out batches must come with the teacher's logits.
        outer_batch_size: samples in a held-out batch; None for the size of the loader's.
        outer_batch_most: bound of that size where ``outer_batch_size`` is None and the loader can be re-batched.
        hypergradient: how the loop's lookahead differentiates.
    """

    name: ClassVar[str]
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}
    needs_teacher: bool = True
    needs_class_means: bool = False
    outer: Outer | None = None
    looks_ahead: bool = False
    outer_needs_teacher: bool = False
    outer_batch_size: int | None = None
    outer_batch_most: int | None = None
    hypergradient: Hypergradient = "auto"

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Called once before training.

        Args:
            num_classes: C.
            class_means: the teacher's mean prediction by class on the training samples, shape (C, C), where asked for.
            device: where batches will be; by default the CPU.
        """

    def alpha(self, signals: Signals) -> Tensor:
        """Fusion ratio of each sample, the weight of the teacher term, shape (N,), in [0, 1]."""
        raise NotImplementedError

    def loss(self, signals: Signals) -> SampleLoss:
        """Loss of each sample. By default ``alpha kd + (1 - alpha) gt`` with no gradient through alpha to the student."""
        alpha = self.alpha(signals)
        # that alpha lies in [0, 1] is checked where the ratios are recorded, many batches at a time
        return SampleLoss(fuse(signals.kd, signals.gt, alpha.detach(), check=False), alpha)

    def records(self, step_index: int) -> bool:
        """Whether the step must be recorded for a hypergradient."""
        return False

    def before_forward(self, step: TrainingStep) -> None:
        """Called before the student sees the step's batches."""

    def after_update(self, step: TrainingStep) -> None:
        """Called after the student's parameters have moved."""

    def after_epoch(
        self, epoch: int, epochs: int, student: nn.Module, optimizer: Optimizer, held_out: dict[str, float]
    ) -> None:
        """Called after an epoch, with the student's metrics on the held-out set (empty where there is none)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
