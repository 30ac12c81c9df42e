"""What a method is: it decides, for every sample, how the teacher's predictions and the label enter the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel import Estimator, FusedTerms, LossTerms, MicroBatch
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.core.validation import check_choice, check_count, check_type
from tgeokd.methods import build_method
from tgeokd.methods.registry import METHODS
from tgeokd.utils.errors import InputError

__all__ = ["METHODS", "ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss"]

Outer = Literal["holdout", "union", "train"]


@dataclass
class LossInputs:
    """What is known of a batch when its loss is computed."""

    student_logits: Tensor  # shape (N, C), attached to the student's graph
    teacher_logits: Tensor | None  # shape (N, C); None only for methods that need no teacher
    target: Tensor  # class indices, shape (N,)
    temperature: float  # ``tau`` of the teacher term
    epoch: int = 0  # index of the running epoch, from 0
    epochs: int = 1  # how many there will be
    learn: bool = True  # whether ``Method.learn`` will be called for these samples
    ids: Tensor | None = None  # sample ids, integers on the CPU, shape (N,), where the loader yields them
    known: Tensor | None = None  # which are validation samples, whose labels are correct, bool, shape (N,); None: none

    # Kept here by a method that uses corrected labels: these, in logs, shape (N, C), and their probability of the label, (N,).
    log_q: Tensor | None = None
    label_prob: Tensor | None = None

    @cached_property
    def kd(self) -> Tensor:
        """Teacher term of each sample, shape (N,)."""
        return kd_loss(self.student_logits, self.teacher, self.temperature)

    @cached_property
    def gt(self) -> Tensor:
        """Label term of each sample, shape (N,)."""
        return gt_loss(self.student_logits, self.target, check=False)

    @property
    def teacher(self) -> Tensor:
        """The teacher's logits, for a method that needs them; an InputError where there are none."""
        if self.teacher_logits is None:
            raise InputError("this method needs a teacher, and none was given")
        return self.teacher_logits


class SampleLoss(NamedTuple):
    """A batch's loss before reduction."""

    loss: Tensor  # shape (N,)
    alpha: (
        Tensor | None
    )  # how much the loss trusts the teacher rather than the label, in [0, 1], (N,); None: no such number
    weight: Tensor | None = None  # the learned weight of each sample, (N,), where it is another number than alpha


@dataclass
class ForwardContext:
    """What a method can use before the student's forward pass of a batch (:meth:`Method.before_forward`)."""

    student: nn.Module
    optimizer: Optimizer
    temperature: float  # ``tau`` of the teacher term
    microbatch: MicroBatch  # the state before the pass; it can be run
    target: Tensor  # class indices, shape (N,)
    teacher_logits: Tensor  # shape (N, C)
    outer: Callable[[], tuple[Any, Tensor, Tensor]]  # next outer batch: inputs, labels (M,), teacher logits (M, C)
    first: bool  # whether it is the first batch of an optimizer step


class Method:
    """Base of all methods. A method defines :meth:`alpha`, or its own :meth:`loss`; everything else is optional."""

    name: ClassVar[str]  # in the registry and on the command line
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}  # options worth searching, each with the values to try
    needs_teacher: bool = True  # whether a teacher must be given
    needs_class_means: bool = False  # whether :meth:`prepare` must be given the teacher's class means
    needs_label_noise: bool = False  # whether :meth:`prepare` must be given a model of wrong labels
    needs_epochs: bool = False  # whether the loss depends on the running epoch
    needs_outer_teacher: bool = False  # whether outer batches must come with the teacher's logits
    looks_before_forward: bool = False  # whether :meth:`before_forward` must be called
    outer: Outer | None = None  # where outer batches come from; None for a method without an outer problem
    outer_batch_size: int | None = None  # samples in an outer batch; None for the batch size of the loader
    outer_batch_limit: int | None = None  # bound of that size where it is None and the loader can be re-batched
    estimator: Estimator | None = None  # of the hypergradient, for a method that learns from it

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Called once before training.

        A method with ``needs_label_noise`` is given one more argument, ``label_noise``, a
        :class:`~tgeokd.core.label_noise.LabelNoise`.

        Args:
            num_classes: C.
            class_means: the teacher's mean prediction by class on the training samples, shape (C, C), where needed.
            device: of the batches; by default the CPU.
        """

    def alpha(self, inputs: LossInputs) -> Tensor:
        """Fusion ratio of each sample, the weight of the teacher term, shape (N,), in [0, 1]."""
        raise NotImplementedError

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """Loss of each sample. By default ``alpha kd + (1 - alpha) gt`` with no gradient through alpha to the student."""
        alpha = self.alpha(inputs)
        # Whether alpha lies in [0, 1] is checked where the ratios are recorded, for many batches at once.
        return SampleLoss(fuse(inputs.kd, inputs.gt, alpha.detach(), check=False), alpha)

    def loss_terms(self, inputs: LossInputs) -> LossTerms:
        """How the loss of :meth:`loss` depends on the learned weight, for a method that learns; by default the fused loss."""
        return FusedTerms(inputs.teacher, inputs.target, inputs.temperature)

    def needs_hypergradient(self, step: int) -> bool:
        """Whether :meth:`learn` is to be called after a step, given by its index from 0."""
        return False

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        """Learn from a finished step, from the weights that :meth:`loss` returned and ``d L_val / d alpha_i``, both (N,).

        Of several microbatches, the weights of all are given, in order. :meth:`loss` may have run for others that were dropped
        with a skipped step.
        """

    def set_outer(self, outer: Outer, outer_batch_size: int | None) -> None:
        """Set where outer batches come from; an InputError for an unknown source or an impossible size."""
        check_choice("outer", outer, Outer)
        check_count(1, outer_batch_size=outer_batch_size)
        self.outer, self.outer_batch_size = outer, outer_batch_size

    def before_forward(self, context: ForwardContext) -> None:
        """Called before the student's forward pass of each batch, where ``looks_before_forward``."""

    def after_epoch(
        self, epoch: int, epochs: int, student: nn.Module, optimizer: Optimizer, metrics: dict[str, float]
    ) -> None:
        """Called after an epoch, with the student's metrics on the validation set (empty where there is none)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


def as_method(method: Method | str) -> Method:
    """A method, or the one of a name with its default options."""
    check_type(method=(method, Method | str))
    return build_method(method) if isinstance(method, str) else method
