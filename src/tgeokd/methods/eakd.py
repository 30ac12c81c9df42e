"""`eakd`: the teacher term weighed by how much teacher and student are in doubt."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.core.validation import check_at_least, check_positive
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("eakd")
class EntropyAdaptiveKD(Method):
    """EA-KD: ``ce_weight gt_i + kd_weight w_i kd_i``, where samples that teacher and student find hard count more.

    ``w_i = H^T_i (1 + H^S_i / log C) / 2`` with the entropies, in nats, of the predictions of teacher and student at a
    temperature of their own; ``0 <= w_i <= log C``. No gradient flows through ``w_i``. The ratio is the teacher's share of
    both weights, ``kd_weight w_i / (ce_weight + kd_weight w_i)``.

    The authors' code for CIFAR-100 divides by 100 in place of log 100, so that the student hardly counts; that for ImageNet
    divides by the log, as the paper does, and so does this class.

    Args:
        ce_weight: weight of the label term. The authors' pairs of weights are 0.1, 0.9 on CIFAR-100 and 1, 0.5 on ImageNet.
        kd_weight: weight of the teacher term.
        entropy_temperature: temperature of the entropies; the authors use 3 on CIFAR-100 and 2 on ImageNet. That of ``kd_i``
            is the run's.

    Raises:
        InputError: for a negative weight or a temperature that is not positive.

    Reference:
        Su, Tseng, Pu, Zhao, Yang, Chen and Lee, "EA-KD: Entropy-based Adaptive Knowledge Distillation", ICCV 2025 (arXiv
        2311.13621), ``w_EA``, and the code of the authors (github.com/cpsu00/EA-KD).
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"kd_weight": (0.1, 0.3, 0.9)}

    def __init__(self, *, ce_weight: float = 0.1, kd_weight: float = 0.9, entropy_temperature: float = 3.0) -> None:
        check_at_least(0, ce_weight=ce_weight, kd_weight=kd_weight)
        check_positive("entropy_temperature", entropy_temperature)
        self.ce_weight, self.kd_weight, self.entropy_temperature = ce_weight, kd_weight, entropy_temperature

    def sample_weight(self, inputs: LossInputs) -> Tensor:
        """``w_i``, shape (N,), without a gradient."""
        with torch.no_grad():
            teacher, student = (self._entropy(logits) for logits in (inputs.teacher, inputs.student_logits))
            return teacher * (1 + student / math.log(inputs.student_logits.shape[-1])) / 2

    def alpha(self, inputs: LossInputs) -> Tensor:
        """The teacher's share of both weights, shape (N,); 0 where both are 0."""
        return self._share(self.kd_weight * self.sample_weight(inputs))

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The weighted sum of both terms."""
        weight = self.kd_weight * self.sample_weight(inputs)
        return SampleLoss(self.ce_weight * inputs.gt + weight * inputs.kd, self._share(weight))

    def _share(self, weight: Tensor) -> Tensor:
        return weight / (self.ce_weight + weight).clamp_min(torch.finfo(weight.dtype).tiny)

    def _entropy(self, logits: Tensor) -> Tensor:
        entropy: Tensor = torch.special.entr((logits / self.entropy_temperature).softmax(dim=-1)).sum(dim=-1)
        return entropy
