"""What an estimator of the hypergradient is, and what those along one direction share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from tgeokd.bilevel.functional import Tensors, trainable
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.core.validation import check_count
from tgeokd.utils.errors import InputError
from tgeokd.utils.registry import Registry

OuterBatch = tuple[Any, Tensor]
"""Inputs of M validation samples and their labels, int64, shape (M,)."""


class Estimator(ABC):
    """Estimates ``d L_val / d alpha_i`` of a finished training step.

    Args:
        direction: replaces the validation gradient, with its memory of earlier steps; by default that gradient itself.
        inner_samples: find the derivative for about this many of the step's samples alone, the first of each microbatch,
            multiplied by their share of all, and give the others 0. Where batches are shuffled this is an unbiased estimate
            of whatever is summed over the samples. By default all.
    """

    replays: bool = True  # whether it runs the student again at the parameters before the step
    math_attention: bool = False  # whether these runs need the attention kernel that has a forward-mode derivative
    needs_slots: bool = False  # whether it needs the optimizer's state before the step
    head: nn.Linear | None = None  # the layer whose inputs the forward pass must keep as ``features``

    def __init__(self, *, direction: OuterDirection | None = None, inner_samples: int | None = None) -> None:
        check_count(1, inner_samples=inner_samples)
        self.direction, self.inner_samples = direction, inner_samples

    @abstractmethod
    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """``d L_val / d alpha_i``, shape (N,), the samples of the microbatches in order.

        The student's parameters, gradients and buffers, the optimizer and the random state stay as they are.
        """

    def resolve(self, student: nn.Module, optimizer: Optimizer, microbatch: MicroBatch) -> Estimator:
        """The estimator to use for a student, chosen once, before the first recorded forward pass; by default this one.

        ``microbatch`` is the state before that pass, which can be run to look at the student.
        """
        return self

    def parameters(self, student: nn.Module) -> Tensors:
        """The parameters whose gradients the estimator uses, by name; by default all that are trained."""
        return trainable(student)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"direction": None if self.direction is None else self.direction.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if (self.direction is None) != (state["direction"] is None):
            raise InputError("the checkpoint was written with another ema_decay or project_out_step_length")
        if self.direction is not None:
            self.direction.load_state_dict(state["direction"])


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator", "tgeokd.bilevel.estimators", group="tgeokd.estimators")


class DirectionalEstimator(Estimator):
    """The exact hypergradient as a directional derivative of the student's logits at the parameters before the step.

    ``d L_val / d alpha_i = -w_i < d (d loss_i / d alpha_i) / d z_i , (d z_i / d theta) J^T v >``: all samples share one
    direction. For a fused loss, ``d loss_i / d alpha_i`` is ``kd_i - gt_i``.
    """

    @abstractmethod
    def logit_derivatives(
        self, student: nn.Module, microbatches: Sequence[MicroBatch], params: Tensors, direction: Tensors
    ) -> list[tuple[Tensor, Tensor]]:
        """For each microbatch the logits at ``params`` and their derivative along ``direction``, two tensors (n, C).

        Each runs again under the random state and buffers of its forward pass; neither the student nor the random state
        change. Both points are given by parameter name; names that ``direction`` leaves out are zero.
        """

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """The exact hypergradient, shape (N,)."""
        microbatches = record.microbatches
        if self.inner_samples is not None:
            microbatches = _first_samples(record, self.inner_samples)
        direction = record.direction(record.outer_gradient(*outer_batch), self.direction)
        moved = self.logit_derivatives(record.student, microbatches, record.params, direction)
        along = [
            (m.terms.weight_grad(logits) * tangent).sum(dim=-1)
            for m, (logits, tangent) in zip(microbatches, moved, strict=True)
        ]
        if self.inner_samples is not None:
            share = sum(map(len, along)) / record.size  # the sum over n samples times N / n estimates the sum over N
            along = [
                torch.cat([values / share, values.new_zeros(len(whole) - len(values))])
                for values, whole in zip(along, record.microbatches, strict=True)
            ]
        return record.per_sample(along)


def _first_samples(record: StepRecord, count: int) -> list[MicroBatch]:
    for module, training in record.microbatches[0].modes:
        # The value of a sample would depend on the other samples of its batch, or on another dropout mask.
        if training and isinstance(module, _BatchNorm | _DropoutNd):
            raise InputError(
                f"inner_samples cannot be used with a student that has {type(module).__name__} layers in training mode: "
                "there the derivative of a sample is that of its whole batch"
            )
    share = count / record.size
    return [m.first(math.ceil(share * len(m))) for m in record.microbatches]


def build_estimator(name: str | Estimator, **options: Any) -> Estimator:
    """An estimator by its name in :data:`ESTIMATORS`, with options of :class:`Estimator`; an estimator is returned as it is.

    Raises:
        InputError: for an unknown name (with the nearest one).
    """
    return name if isinstance(name, Estimator) else ESTIMATORS[name](**options)
