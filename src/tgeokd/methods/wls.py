"""`wls`: weighted soft labels, from how student and teacher fare on the label."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tgeokd.core.losses import gt_loss, soft_ce_loss
from tgeokd.core.validation import check_choice, check_positive
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss

Form = Literal["original", "convex"]


@METHODS.register("wls")
class WeightedSoftLabelKD(Method):
    """WLS-KD: a sample's soft label counts more the better the teacher fits its label relative to the student.

    With ``w_i = 1 - exp(-CE_student / CE_teacher)`` (cross-entropies with the label at temperature 1, no gradient),
    ``original``, the authors' form, is ``gt_i + scale tau^2 w_i softCE_i``: the label always counts fully.
    ``convex``, the form the TGeo-KD paper compares with, is ``w_i kd_i + (1 - w_i) gt_i``.

    Args:
        form: ``"original"`` or ``"convex"``.
        scale: weight of the soft-label term in the original form; the authors use 2.5 on ImageNet, 2.25 is used on CIFAR.

    Reference:
        Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"form": ("original", "convex"), "scale": (1.0, 2.25, 4.0)}

    def __init__(self, *, form: Form = "original", scale: float = 2.25) -> None:
        check_choice("form", form, Form)
        check_positive("scale", scale)
        self.form, self.scale = form, scale

    def alpha(self, inputs: LossInputs) -> Tensor:
        """``w_i``."""
        teacher_ce = gt_loss(inputs.teacher, inputs.target, check=False)
        return 1.0 - torch.exp(-inputs.gt.detach() / (teacher_ce + 1e-7))

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The fused loss, or the authors' sum."""
        if self.form == "convex":
            return super().loss(inputs)
        weight = self.scale * self.alpha(inputs)
        soft = inputs.temperature**2 * soft_ce_loss(inputs.student_logits, inputs.teacher, inputs.temperature)
        return SampleLoss(inputs.gt + weight * soft, weight / (1 + weight))
