"""`gce`: generalised cross-entropy, between cross-entropy and mean absolute error, for wrong labels."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss
from tgeokd.utils.errors import InputError


@METHODS.register("gce")
class GeneralizedCrossEntropy(Method):
    """``(1 - p_i[y_i]^q) / q`` with the student's probability of the label ``p_i[y_i]``; no teacher.

    ``q -> 0`` is cross-entropy, ``q = 1`` the mean absolute error (up to a factor of 2). The gradient is ``p_i[y_i]^q`` times
    that of cross-entropy: small for a label that the student finds improbable. The authors' truncated variant is not
    offered.

    Args:
        q: in (0, 1].

    Reference:
        Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018,
        equation 6.
    """

    needs_teacher = False
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"q": (0.3, 0.5, 0.7)}

    def __init__(self, *, q: float = 0.7) -> None:
        if not 0 < q <= 1:
            raise InputError(f"q must lie in (0, 1], not {q}")
        self.q = q

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The loss of each sample."""
        log_p = -F.cross_entropy(inputs.student_logits, inputs.target, reduction="none")
        return SampleLoss(-torch.expm1(self.q * log_p) / self.q, None)
