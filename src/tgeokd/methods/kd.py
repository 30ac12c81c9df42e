"""`kd`: one fusion ratio for all samples."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.core.losses import check_ratios
from tgeokd.methods.base import METHODS, LossInputs, Method


@METHODS.register("kd")
class VanillaKD(Method):
    """Plain distillation with a constant fusion ratio.

    Args:
        alpha: weight of the teacher term in [0, 1].

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. The default 0.9 is the one of the
        usual CIFAR-100 recipe (Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020).
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"alpha": (0.1, 0.3, 0.5, 0.7, 0.9)}

    def __init__(self, *, alpha: float = 0.9) -> None:
        check_ratios(alpha)
        self.constant = alpha

    def alpha(self, inputs: LossInputs) -> Tensor:
        """The constant, for each sample."""
        return torch.full_like(inputs.target, self.constant, dtype=inputs.student_logits.dtype)
