"""Inputs of f_omega for the study: the geometry, and what the switches of cause 5 (and ``progress``) add to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tgeokd import LossInputs
from tgeokd.core.geometry.scalar import GeometryFeatures, SparseClassMeans, num_scalar_features, scalar_from_logits

__all__ = ["Inputs", "progress_of"]


class Inputs:
    """Computes the inputs of f_omega.

    Args:
        geometry: what is included in the geometry.
        progress: add the share of training that is done.
        softened: compute the geometry at the temperature of the loss.
        standardised: scale every input to mean 0 and deviation 1, by moving averages.
        logs: add log-probabilities of the label, and whether student and teacher are correct and agree.
        history: add the student's earlier probability of the label.

    Attributes:
        count: inputs per sample, F.
    """

    def __init__(
        self,
        geometry: GeometryFeatures,
        *,
        progress: bool = False,
        softened: bool = False,
        standardised: bool = False,
        logs: bool = False,
        history: bool = False,
    ) -> None:
        self.geometry, self.progress, self.softened = geometry, progress, softened
        self.standardised, self.logs, self.history = standardised, logs, _History() if history else None
        self.count = num_scalar_features(geometry) + progress + 2 * history + 6 * logs
        self.mean, self.square, self.decay = torch.zeros(self.count), torch.ones(self.count), 0.0

    def __call__(self, inputs: LossInputs, class_means: Tensor | SparseClassMeans | None) -> Tensor:
        """Shape (N, F)."""
        student, teacher = inputs.student_logits.detach(), inputs.teacher.detach()
        if self.softened:
            student, teacher = student / inputs.temperature, teacher / inputs.temperature
        label = inputs.target[:, None]
        columns = [scalar_from_logits(student, teacher, inputs.target, class_means, self.geometry)]
        if self.progress:
            columns.append(columns[0].new_full((len(label), 1), progress_of(inputs)))
        if self.history is not None:
            assert inputs.ids is not None
            columns += self.history.columns(inputs.ids, student.softmax(-1).gather(-1, label).squeeze(-1))
        if self.logs:
            of_student, of_teacher = (logits.log_softmax(-1).gather(-1, label) for logits in (student, teacher))
            by_student, by_teacher = student.argmax(-1, keepdim=True), teacher.argmax(-1, keepdim=True)
            columns += [-of_student, -of_teacher, -of_student + of_teacher]
            columns += [x.float() for x in (by_student == label, by_teacher == label, by_student == by_teacher)]
        features = torch.cat(columns, -1) if len(columns) > 1 else columns[0]
        return self._standardise(features, learn=inputs.learn) if self.standardised else features

    def _standardise(self, features: Tensor, *, learn: bool) -> Tensor:
        if learn:
            self.mean = self.decay * self.mean + (1 - self.decay) * features.mean(0)
            self.square = self.decay * self.square + (1 - self.decay) * features.square().mean(0)
            self.decay = 0.98  # the first batch replaces the initial values
        return (features - self.mean) / (self.square - self.mean.square()).clamp_min(1e-6).sqrt()


class _History:
    """A moving average of the student's probability of the label, by sample id, and the difference to it."""

    def __init__(self) -> None:
        self.table = torch.zeros(0)

    def columns(self, ids: Tensor, probability: Tensor) -> list[Tensor]:
        missing = int(ids.max()) + 1 - len(self.table)
        if missing > 0:
            self.table = torch.cat([self.table, torch.full((missing,), math.nan)])
        before = self.table[ids]
        mean = torch.where(before.isnan(), probability, 0.7 * before + 0.3 * probability)
        self.table[ids] = mean
        return [mean[:, None], (probability - mean)[:, None]]


def progress_of(inputs: LossInputs) -> float:
    """Share of training that is done: 0 in the first epoch, 1 in the last."""
    return inputs.epoch / max(inputs.epochs - 1, 1)
