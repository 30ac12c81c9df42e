"""`lskd`: distillation of standardised logits."""

from typing import Any, ClassVar

from tgeokd.core.losses import kd_loss, standardise
from tgeokd.core.validation import check_at_least
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("lskd")
class LogitStandardizationKD(Method):
    """Logit standardisation: ``ce_weight gt_i + kd_weight kd_i``, where kd_i compares standardised logits.

    The logits of student and teacher are brought to mean 0 and deviation 1 sample by sample
    (:func:`tgeokd.core.losses.standardise`), so the student must match the teacher's ranking and relations, not its scale.
    The weights are the same for all samples and on different scales, so there is no fusion ratio.

    The temperature is the run's. The authors' own is 2, half of the usual 4 (3 for some of their pairs).

    Args:
        ce_weight: weight of the label term.
        kd_weight: weight of the teacher term.

    Reference:
        Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"kd_weight": (3.0, 9.0)}

    def __init__(self, *, ce_weight: float = 0.1, kd_weight: float = 9.0) -> None:
        check_at_least(0, ce_weight=ce_weight, kd_weight=kd_weight)
        self.ce_weight, self.kd_weight = ce_weight, kd_weight

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The weighted sum of both terms; no fusion ratio."""
        student, teacher = standardise(inputs.student_logits), standardise(inputs.teacher)
        kd = kd_loss(student, teacher, inputs.temperature)
        return SampleLoss(self.ce_weight * inputs.gt + self.kd_weight * kd, None)
