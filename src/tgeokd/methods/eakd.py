"""`eakd`: the teacher term weighed by how much teacher and student are in doubt."""

import math
from typing import Any, ClassVar

from torch import Tensor

from tgeokd.core.validation import check_at_least, check_positive
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("eakd")
class EntropyAdaptiveKD(Method):
    """``gt_i + scale w_i kd_i`` with ``w_i = (H_T + H_T H_S / log C) / 2`` and the entropies of teacher and student.

    The entropies are those of the predictions at the temperature ``entropy_temperature``, without a gradient: samples that the
    teacher finds hard, and that the student has not learned yet, count more.

    Args:
        scale: weight of the teacher term; the authors use 0.9 for it and 0.1 for the label on CIFAR-100, here 9 to 1.
        entropy_temperature: of the entropies; 3 in the authors' code.

    Reference:
        Su, Chen, Chiu, Tsai and Hwang, "EA-KD: Entropy-based Adaptive Knowledge Distillation", 2023 (arXiv 2311.13621); the
        weight as in the authors' code.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"scale": (0.5, 1.0, 3.0, 9.0)}

    def __init__(self, *, scale: float = 1.0, entropy_temperature: float = 3.0) -> None:
        check_at_least(0, scale=scale)
        check_positive("entropy_temperature", entropy_temperature)
        self.scale, self.entropy_temperature = scale, entropy_temperature

    def weight(self, inputs: LossInputs) -> Tensor:
        """``w_i``, shape (N,), without a gradient."""
        teacher, student = (
            _entropy(z.detach() / self.entropy_temperature) for z in (inputs.teacher, inputs.student_logits)
        )
        return (teacher + teacher * student / math.log(inputs.student_logits.shape[-1])) / 2

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The sum of both terms; the ratio is the teacher's share of the weights."""
        weight = self.scale * self.weight(inputs)
        return SampleLoss(inputs.gt + weight * inputs.kd, weight / (1 + weight))


def _entropy(logits: Tensor) -> Tensor:
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)
