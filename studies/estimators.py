"""Variants of the ``last_layer`` hypergradient for the study: one estimator for each suspected cause that concerns it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.bilevel import FusedTerms, StepRecord
from tgeokd.bilevel.estimators.base import OuterBatch
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.core.losses import gt_grad, kd_grad
from tgeokd.data.batch import Batch
from tgeokd.teachers.base import Teacher

__all__ = ["ESTIMATORS", "EqualNorms", "WithTeacher"]


class Delayed(LastLayerEstimator):
    """Cause 1: uses the validation gradient of ``delay`` updates of omega later; gives zeros before.

    The result belongs to the step of ``delay`` updates ago.
    """

    def __init__(self, *, delay: int, **options: Any) -> None:
        super().__init__(**options)
        if self.direction is not None and self.direction.project_out_step_length:
            raise ValueError("the delayed estimator needs project_out_step_length=False")
        self.delay = delay
        self.waiting: deque[StepRecord] = deque()

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        self.waiting.append(record)
        if len(self.waiting) > self.delay:
            return super().estimate(self.waiting.popleft(), outer_batch)
        return torch.zeros_like(super().estimate(record, outer_batch))  # the direction averages this gradient too


class Centred(LastLayerEstimator):
    """Cause 2: the mean over the step is subtracted, so that an update of omega hardly changes the mean ratio."""

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        gradient = super().estimate(record, outer_batch)
        return gradient - gradient.mean()


@dataclass(frozen=True)
class ChangedTerms(FusedTerms):
    """Another function of the two gradients than their difference."""

    difference: Callable[[Tensor, Tensor], Tensor] = torch.sub

    def weight_grad(self, logits: Tensor) -> Tensor:
        return self.difference(kd_grad(logits, self.teacher_logits, self.temperature), gt_grad(logits, self.target))


class ChangedDifference(LastLayerEstimator):
    """Base of estimators that change the gradients of ``kd_i`` and ``gt_i`` with respect to the logits, shape (n, C)."""

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        for microbatch in record.microbatches:
            terms = microbatch.terms
            assert isinstance(terms, FusedTerms)
            fields = (terms.teacher_logits, terms.target, terms.temperature)
            microbatch.loss_terms = ChangedTerms(*fields, difference=self.difference)
        return super().estimate(record, outer_batch)

    def difference(self, kd: Tensor, gt: Tensor) -> Tensor:
        raise NotImplementedError


class EqualNorms(ChangedDifference):
    """Cause 2: ``kd_i`` is multiplied by ``kd_scale``, which the method sets in every step and uses in its loss too."""

    kd_scale: Tensor | float = 1.0

    def difference(self, kd: Tensor, gt: Tensor) -> Tensor:
        return kd * self.kd_scale - gt


class UnitNorms(ChangedDifference):
    """Cause 2: the gradients of ``kd_i`` and ``gt_i`` are scaled to length 1. The training loss is unchanged."""

    def difference(self, kd: Tensor, gt: Tensor) -> Tensor:
        return F.normalize(kd, dim=-1, eps=1e-6) - F.normalize(gt, dim=-1, eps=1e-6)


class Balanced(LastLayerEstimator):
    """Cause 3: every class has the same weight in a validation batch."""

    def outer_residual(self, logits: Tensor, target: Tensor) -> Tensor:
        weight = 1.0 / target.bincount(minlength=logits.shape[-1])[target]
        return super().outer_residual(logits, target) * (weight / weight.mean())[:, None]


class Smoothed(LastLayerEstimator):
    """Cause 6: the validation loss is the cross-entropy with labels smoothed by 0.1."""

    def outer_residual(self, logits: Tensor, target: Tensor) -> Tensor:
        classes = logits.shape[-1]
        return logits.softmax(-1) - (0.9 * F.one_hot(target, classes) + 0.1 / classes)


class Margin(LastLayerEstimator):
    """Cause 6: the validation loss is a hinge; samples that are correct by a margin of 1 have no gradient."""

    def outer_residual(self, logits: Tensor, target: Tensor) -> Tensor:
        others = logits.scatter(-1, target[:, None], -math.inf)
        counts = logits.gather(-1, target[:, None]).squeeze(-1) - others.max(-1).values < 1.0
        residual = F.one_hot(others.argmax(-1), logits.shape[-1]) - F.one_hot(target, logits.shape[-1])
        return counts[:, None] * residual.to(logits.dtype)


class WithTeacher(LastLayerEstimator):
    """Cause 6: the validation loss is half cross-entropy and half the loss from the teacher, which must be set first."""

    teacher: Teacher | None = None

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        assert self.teacher is not None
        terms = record.microbatches[0].terms
        assert isinstance(terms, FusedTerms)
        self.teacher_logits, self.temperature = self.teacher.logits(Batch(*outer_batch)), terms.temperature
        return super().estimate(record, outer_batch)

    def outer_residual(self, logits: Tensor, target: Tensor) -> Tensor:
        kd = kd_grad(logits, self.teacher_logits, self.temperature)
        return 0.5 * super().outer_residual(logits, target) + 0.5 * kd


ESTIMATORS: dict[str, type[LastLayerEstimator]] = {
    "delayed": Delayed,
    "centred": Centred,
    "equal_norms": EqualNorms,
    "unit_norms": UnitNorms,
    "balanced": Balanced,
    "smoothed": Smoothed,
    "margin": Margin,
    "with_teacher": WithTeacher,
}
