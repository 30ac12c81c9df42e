"""How the loss of a sample depends on its learned weight: what an estimator must know of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

from torch import Tensor

from tgeokd.core.losses import fuse, gt_grad, gt_loss, kd_grad, kd_loss


@dataclass(frozen=True)
class LossTerms(ABC):
    """The loss of n samples as a function of the student's logits and the learned weight of each sample.

    Every field that is a tensor has the samples in its first dimension.
    """

    @abstractmethod
    def loss(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Loss of each sample, shape (n,), from logits (n, C) and weights (n,)."""

    @abstractmethod
    def weight_grad(self, logits: Tensor) -> Tensor:
        """Gradient with respect to the logits of what a unit of weight adds to the loss, shape (n, C).

        The loss must be linear in the weight.
        """

    def first(self, count: int) -> Self:
        """The terms of the first samples."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor[:count] for name, tensor in tensors.items()})


@dataclass(frozen=True)
class FusedTerms(LossTerms):
    """``alpha_i kd_i + (1 - alpha_i) gt_i``; the weight is the fusion ratio ``alpha_i``."""

    teacher_logits: Tensor  # shape (n, C)
    target: Tensor  # class indices, shape (n,)
    temperature: float  # ``tau`` of the teacher term

    def loss(self, logits: Tensor, weight: Tensor) -> Tensor:
        """The fused loss, shape (n,)."""
        return fuse(
            kd_loss(logits, self.teacher_logits, self.temperature), gt_loss(logits, self.target, check=False), weight
        )

    def weight_grad(self, logits: Tensor) -> Tensor:
        """Gradient of ``kd_i - gt_i``, shape (n, C)."""
        return kd_grad(logits, self.teacher_logits, self.temperature) - gt_grad(logits, self.target, check=False)
