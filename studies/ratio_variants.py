"""The new default with switches, for the study of what makes a ratio win with a pretrained teacher (ratio_rows.py)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diagnosis import Diagnosed
from torch import Tensor

from tgeokd import LossInputs, TGeoKD
from tgeokd.bilevel import FusedTerms, LossTerms
from tgeokd.methods.corrected import CorrectedTerms

__all__ = ["RATIO_METHODS", "Constant", "KnownWrong", "Ratio"]


class Ratio(Diagnosed, TGeoKD):
    """``TGeoKD`` with its starting point, its teacher and its samples changed.

    Args:
        shift: added to the log odds that the ratio starts at.
        slope: factor of the prior's log odds.
        teacher: of the teacher term: ``"raw"``, ``"calibrated"``, or ``"posterior"``, the corrected labels.
        self_influence: learn from the ratios of validation samples too.
        **options: of ``TGeoKD``.
    """

    name: ClassVar[str] = "ratio"

    def __init__(
        self,
        *,
        shift: float = 0.0,
        slope: float = 1.0,
        teacher: str = "raw",
        self_influence: bool = False,
        tau: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.shift, self.slope, self.teacher, self.self_influence = shift, slope, teacher, self_influence
        self.tau = tau

    def _start(self, inputs: LossInputs) -> Tensor:
        return self.shift + self.slope * super()._start(inputs)

    def loss_terms(self, inputs: LossInputs) -> LossTerms:
        log_q = self._log_q(inputs)
        assert log_q is not None
        logits = inputs.teacher
        if self.teacher == "calibrated":
            logits = self.label_noise.calibrated(inputs.teacher)
        elif self.teacher == "posterior":
            logits = log_q
        tau = self.tau or inputs.temperature
        if self.corrects_labels:
            return CorrectedTerms(logits, log_q.exp(), tau)
        return FusedTerms(logits, inputs.target, tau)

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        if self.self_influence:
            self._pulls = [(features, learned, torch.zeros_like(known)) for features, learned, known in self._pulls]
        super().learn(alpha, gradient)


class Constant(Ratio):
    """The same loss with the ratio at its starting point: nothing is learned."""

    name: ClassVar[str] = "constant"

    def needs_hypergradient(self, step: int) -> bool:
        return False


RATIO_METHODS = {"ratio": Ratio, "constant": Constant}


class KnownWrong(Diagnosed):
    """Knows which labels are wrong: the teacher alone there, a constant ratio elsewhere.

    Args:
        right: alpha where the label is correct; it is 1 where the label is wrong.
    """

    name: ClassVar[str] = "known"
    outer = "union"  # uses no outer batch, but trains on the same samples as the others

    def __init__(self, *, right: float) -> None:
        super().__init__()
        self.right = right

    def alpha(self, inputs: LossInputs) -> Tensor:
        return torch.where(self.wrong(inputs), 1.0, self.right).to(inputs.student_logits.dtype)
