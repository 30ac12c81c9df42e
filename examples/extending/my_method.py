"""A method: the fusion ratio of a sample follows the confidence of the teacher."""

import math
from typing import ClassVar

from torch import Tensor

from tgeokd.methods.base import LossInputs, Method
from tgeokd.utils.errors import InputError


class ConfidenceKD(Method):
    """``alpha_i = scale (1 - H(T_i) / log C)``: 0 for a uniform prediction of the teacher, ``scale`` for a certain one.

    Args:
        scale: the largest fusion ratio, in [0, 1].
    """

    search_space: ClassVar = {"scale": (0.5, 0.9, 1.0)}

    def __init__(self, *, scale: float = 0.9) -> None:
        if not 0 <= scale <= 1:
            raise InputError(f"scale must lie in [0, 1], not {scale}")
        self.scale = scale

    def alpha(self, inputs: LossInputs) -> Tensor:
        """Fusion ratio of each sample, shape (N,)."""
        log_probs = inputs.teacher.log_softmax(dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        return self.scale * (1 - entropy / math.log(log_probs.shape[1])).clamp(0, 1)
