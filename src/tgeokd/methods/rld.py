"""`rld`: refined logits: the label corrects the teacher before it teaches."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.core.losses import kd_loss
from tgeokd.core.validation import check_at_least
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("rld")
class RefinedLogitKD(Method):
    """``gt_i + warm_up (confidence SCD_i + correlation MCD_i)``: a teacher that is wrong does not teach its wrong class.

    *Sample confidence*: ``SCD = tau^2 KL`` between two pairs, the teacher's (largest probability, all the rest) and the
    student's (probability of the label, all the rest): the student is to be as certain of the label as the teacher is of its
    best class. *Masked correlation*: ``MCD = tau^2 KL`` between teacher and student over the classes that the teacher ranks
    below the label; the label and every class that it ranks at or above the label are left out. 0 for fewer than two classes.

    Args:
        confidence: weight of SCD (the authors' alpha).
        correlation: weight of MCD (the authors' beta); they use 1 to 8 on CIFAR-100 and 0.5 on ImageNet.
        warm_up: epochs over which both weights grow from 0, linearly.

    Reference:
        Sun, Chen, Ren and Cao, "Knowledge Distillation with Refined Logits", 2024 (arXiv 2408.07703), equations 6 to 9.
    """

    needs_epochs = True
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"correlation": (0.5, 1.0, 4.0, 8.0)}

    def __init__(self, *, confidence: float = 1.0, correlation: float = 1.0, warm_up: int = 1) -> None:
        check_at_least(0, confidence=confidence, correlation=correlation, warm_up=warm_up)
        self.confidence, self.correlation, self.warm_up = confidence, correlation, warm_up

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The sum of the three terms."""
        teacher, student, tau = inputs.teacher, inputs.student_logits, inputs.temperature
        grown = min(inputs.epoch / self.warm_up, 1.0) if self.warm_up else 1.0
        scd = kd_loss(_pair(student, inputs.target, tau), _pair(teacher, teacher.argmax(dim=-1), tau), 1.0)
        mcd = _masked(student, teacher, inputs.target, tau)
        refined = self.confidence * scd + self.correlation * mcd
        return SampleLoss(inputs.gt + grown * tau**2 * refined, None)


def _pair(logits: Tensor, chosen: Tensor, tau: float) -> Tensor:
    """Logits of (the chosen class, all the rest) at temperature ``tau``, shape (N, 2)."""
    z, own = logits / tau, chosen.unsqueeze(-1)
    rest = z.scatter(-1, own, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([z.gather(-1, own), rest], dim=-1)


def _masked(student: Tensor, teacher: Tensor, target: Tensor, tau: float) -> Tensor:
    """KL over the classes that the teacher ranks below the label, shape (N,)."""
    above = teacher >= teacher.gather(-1, target.unsqueeze(-1))
    lowest = torch.finfo(student.dtype).min / 4  # not infinite: a sample may have no class left
    log_t, log_s = ((z / tau).masked_fill(above, lowest).log_softmax(dim=-1) for z in (teacher, student))
    terms = log_t.exp() * (log_t - log_s)
    return terms.masked_fill(above, 0.0).sum(dim=-1)
