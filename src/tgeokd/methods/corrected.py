"""The label term of a sample whose label may be wrong: cross-entropy with the class probabilities given teacher and label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tgeokd.bilevel import LossTerms
from tgeokd.core.label_noise import LabelNoise, known_labels
from tgeokd.core.losses import fuse, kd_grad, kd_loss
from tgeokd.core.softmax import log_softmax, softmax
from tgeokd.methods.base import LossInputs


@dataclass(frozen=True)
class CorrectedTerms(LossTerms):
    """``alpha_i kd_i + (1 - alpha_i) CE(q_i, softmax(z_i))`` with corrected labels ``q_i``."""

    teacher_logits: Tensor  # shape (n, C)
    label_probs: Tensor  # ``q``, shape (n, C)
    temperature: float  # ``tau`` of the teacher term

    def loss(self, logits: Tensor, weight: Tensor) -> Tensor:
        """The fused loss, shape (n,)."""
        kd = kd_loss(logits, self.teacher_logits, self.temperature)
        return fuse(kd, soft_label_loss(logits, self.label_probs), weight, check=False)

    def weight_grad(self, logits: Tensor) -> Tensor:
        """Gradient of the difference of both terms, shape (n, C)."""
        teacher = kd_grad(logits, self.teacher_logits, self.temperature)
        return teacher - (softmax(logits) - self.label_probs)


def soft_label_loss(student_logits: Tensor, label_probs: Tensor) -> Tensor:
    """Cross-entropy of the student's prediction with class probabilities (N, C), shape (N,), in nats."""
    return -(label_probs * log_softmax(student_logits)).sum(dim=-1)


def corrected_labels(noise: LabelNoise, inputs: LossInputs) -> Tensor:
    """``log q``, shape (N, C); of samples whose label is known to be correct, (almost) the label itself."""
    log_probs = noise.posterior(inputs.teacher.detach(), inputs.target)
    return log_probs if inputs.known is None else known_labels(log_probs, inputs.target, inputs.known)
