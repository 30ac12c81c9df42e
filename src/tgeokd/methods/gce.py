"""`gce`: generalised cross-entropy, between cross-entropy and mean absolute error, for wrong labels."""

from typing import Any, ClassVar

import torch

from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss
from tgeokd.utils.errors import InputError


@METHODS.register("gce")
class GeneralizedCrossEntropy(Method):
    """``(1 - p_i[y_i]^q) / q`` with the student's probability of the label ``p_i[y_i]``; no teacher, no fusion ratio.

    ``q -> 0`` is cross-entropy, ``q = 1`` the mean absolute error (up to a factor of 2). The gradient is ``p_i[y_i]^q`` times
    that of cross-entropy: small for a label that the student finds improbable. The authors' truncated variant, which leaves
    out samples whose ``p_i[y_i]`` is below a threshold and keeps that choice between epochs, is not offered.

    Args:
        q: in (0, 1]; 0.7 is the authors' choice.

    Raises:
        InputError: for ``q`` outside (0, 1].

    Reference:
        Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018,
        section 3.2 (the loss ``L_q``).

    Example:
        >>> import math
        >>> logits = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/4 and 3/4
        >>> inputs = LossInputs(logits, None, torch.tensor([0]), temperature=1.0)
        >>> round(GeneralizedCrossEntropy(q=0.5).loss(inputs).loss.item(), 4)  # (1 - sqrt(1/4)) / (1/2)
        1.0
    """

    needs_teacher = False
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"q": (0.3, 0.5, 0.7)}

    def __init__(self, *, q: float = 0.7) -> None:
        if not 0 < q <= 1:
            raise InputError(f"q must lie in (0, 1], not {q}")
        self.q = q

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The loss of each sample, shape (N,), from the log-probability: exact also where ``p_i[y_i]`` underflows."""
        return SampleLoss(-torch.expm1(-self.q * inputs.gt) / self.q, None)
