"""`rld`: refined logits: the label corrects the teacher before it teaches."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.losses import kd_loss
from tgeokd.core.validation import check_at_least
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("rld")
class RefinedLogitKD(Method):
    """Refined logits: ``gt_i + w(e) (alpha SCD_i + beta MCD_i)``; a teacher that is wrong does not teach its wrong class.

    *Sample confidence*, ``SCD = tau^2 KL`` of two pairs: the teacher's (its largest probability, all the rest) from the
    student's (its probability of the label, all the rest). The student is to be as certain of the label as the teacher is of
    whatever class it prefers. *Masked correlation*, ``MCD = tau^2 KL`` of the softened teacher from the softened student,
    both over the classes with ``z^T_c < z^T_y`` alone. The label itself and every class that the teacher ranks at or above it
    (ties included) are left out of both distributions. MCD is 0 where fewer than two classes remain. The mask depends on the
    teacher alone; nothing of the student is detached.

    Where the teacher prefers the label, the loss is that of ``dkd`` with the same weights.

    ``w(e) = min(e / warmup, 1)`` in the e-th epoch, counted from 1 as the authors' code does. The label always counts fully
    and the terms are on different scales, so there is no fusion ratio. Both terms use the temperature of the run (the
    authors' ``--same-t``).

    Args:
        alpha: weight of SCD.
        beta: weight of MCD. The authors' configuration has 8 on CIFAR-100 and 0.5, at temperature 1, on ImageNet. The best
            value depends on the pair of models.
        warmup: epochs in which the weight rises to 1; 0 for none. By default a twelfth of all epochs (the authors' 20 of
            240; they use 1 of 100 on ImageNet).

    Raises:
        InputError: for a negative option.

    Reference:
        Sun, Chen, Lyu, Chen, Chen and Wang, "Knowledge Distillation with Refined Logits", ICCV 2025 (arXiv 2408.07703),
        ``L_RLD`` with the mask ``M_ge``, and the code of the authors (github.com/zju-SWJ/RLD).
    """

    needs_epochs = True
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"beta": (1.0, 2.0, 4.0, 8.0), "warmup": (None, 0)}

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, warmup: int | None = None) -> None:
        check_at_least(0, alpha=alpha, beta=beta, warmup=warmup)
        self.alpha_weight, self.beta_weight, self.warmup = alpha, beta, warmup

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The label term plus the two weighted parts, shape (N,); no fusion ratio."""
        teacher, student, tau = inputs.teacher, inputs.student_logits, inputs.temperature
        confidence = kd_loss(_pair(student, inputs.target, tau), _pair(teacher, teacher.argmax(dim=-1), tau), 1.0)
        correlation = _masked_kl(student, teacher, inputs.target, tau)
        warmup = inputs.epochs / 12 if self.warmup is None else self.warmup
        weight = min((inputs.epoch + 1) / warmup, 1.0) if warmup > 0 else 1.0
        parts = self.alpha_weight * confidence + self.beta_weight * correlation
        return SampleLoss(inputs.gt + weight * tau**2 * parts, None)


def _pair(logits: Tensor, chosen: Tensor, tau: float) -> Tensor:
    """Logits of (the chosen class, all the rest) at temperature ``tau``, shape (N, 2)."""
    softened, chosen = logits / tau, chosen.unsqueeze(-1)
    rest = softened.scatter(-1, chosen, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([softened.gather(-1, chosen), rest], dim=-1)


def _masked_kl(student: Tensor, teacher: Tensor, target: Tensor, tau: float) -> Tensor:
    """KL of teacher from student over the classes that the teacher ranks below the label, shape (N,)."""
    masked = teacher >= teacher.gather(-1, target.unsqueeze(-1))
    # Not minus infinity: where all classes are masked, both are uniform, and the value and the gradient are 0 without NaN.
    log_s, log_t = (
        (z / tau).masked_fill(masked, torch.finfo(z.dtype).min / 4).log_softmax(dim=-1) for z in (student, teacher)
    )
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).masked_fill(masked, 0.0).sum(dim=-1)
