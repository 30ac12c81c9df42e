"""`dkd`: separate weights for the teacher's predictions on the label's class and on the other classes."""

from typing import Any, ClassVar

from tgeokd.core.losses import decoupled_kd, standardise
from tgeokd.core.validation import check_at_least
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("dkd")
class DecoupledKD(Method):
    """Decoupled KD: ``gt_i + w(e) (alpha TCKD_i + beta NCKD_i)``, the two parts of :func:`tgeokd.core.losses.decoupled_kd`.

    ``w(e) = min(e / warmup, 1)`` in the e-th epoch, counted from 1 as the authors' code does. The label always counts
    fully, so there is no fusion ratio.

    Args:
        alpha: weight of the part about the label's class.
        beta: weight of the part about the other classes. The authors choose it by teacher: 8, but 2 for ResNet-56 and
            ResNet-110 and 6 for VGG and wide ResNets, on CIFAR-100.
        warmup: epochs in which the weight rises to 1; 0 for none. By default a twelfth of all epochs (the authors' 20 of
            240).
        standardise: standardise student's and teacher's logits first (Sun et al., CVPR 2024). Their released script then
            has alpha = 9 and beta = 81.

    Reference:
        Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022.
    """

    needs_epochs = True
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"beta": (1.0, 2.0, 4.0, 8.0), "warmup": (None, 0)}

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, warmup: int | None = None, standardise: bool = False
    ) -> None:
        check_at_least(0, alpha=alpha, beta=beta, warmup=warmup)
        self.alpha_weight, self.beta_weight, self.warmup, self.standardise = alpha, beta, warmup, standardise

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The label term plus the two weighted parts; no fusion ratio."""
        student, teacher = inputs.student_logits, inputs.teacher
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        target_part, other_part = decoupled_kd(student, teacher, inputs.target, inputs.temperature)
        warmup = inputs.epochs / 12 if self.warmup is None else self.warmup
        weight = min((inputs.epoch + 1) / warmup, 1.0) if warmup > 0 else 1.0
        parts = self.alpha_weight * target_part + self.beta_weight * other_part
        return SampleLoss(inputs.gt + weight * parts, None)
