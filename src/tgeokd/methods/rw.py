"""`rw`: per-sample ratios meta-learned anew in every step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tgeokd.bilevel import Hypergradient
from tgeokd.bilevel.functional import functional_logits, trainable
from tgeokd.bilevel.lookahead import logits_along, new_part
from tgeokd.bilevel.record import MicroBatch, held_by
from tgeokd.core.losses import gt_loss, gt_slope, kd_loss, kd_slope, soft_ce_loss
from tgeokd.core.model_call import eval_mode
from tgeokd.methods.base import Method, Outer, SampleLoss, Signals, TrainingStep, check_outer
from tgeokd.utils.errors import InputError

__all__ = ["ReweightingKD"]


class ReweightingKD(Method):
    """RW-KD: the ratio of a sample follows how much each of its two terms helps on held-out data right now.

    In every step, weights ``e_kd``, ``e_gt`` of all samples start at 0 and one plain SGD step (with the optimizer's learning
    rate) on ``sum_i e_gt,i gt_i + e_kd,i kd_i`` is looked ahead. With the meta loss ``L = mean(gt + kd)`` on a held-out batch,
    ``u = max(-beta dL/de, delta)`` and ``alpha_i = u_kd,i / (u_kd,i + u_gt,i)``. The student then trains on
    ``(1 - alpha_i) gt_i + alpha_i tau^2 softCE_i``. At weights 0 the lookahead is the present point, so ``dL/de_i`` is
    ``-lr <grad L, grad l_i>``: one forward-mode pass for all samples and both terms.

    Args:
        beta: meta learning rate. It scales all ``u`` alike, so it matters only against ``delta``.
        delta: smallest weight; a sample whose two terms both hurt gets alpha = 0.5.
        outer: where held-out batches come from: ``"holdout"``, ``"union"`` or ``"train"``.
        outer_batch_size: samples in a held-out batch; by default the held-out loader's batches as they are.
        hypergradient: ``"exact"``, ``"forward"`` or ``"finite_difference"``.

    Reference:
        Lu, Ghaddar, Rashid, Rezagholizadeh, Ghodsi and Langlais, "RW-KD: Sample-wise Loss Terms Re-Weighting for Knowledge
        Distillation", Findings of EMNLP 2021, Algorithm 1 as a later re-implementation reads it.
    """

    name: ClassVar[str] = "rw"
    outer_needs_teacher = True

    def __init__(
        self,
        *,
        beta: float = 1.0,
        delta: float = 1e-8,
        outer: Outer = "holdout",
        outer_batch_size: int | None = None,
        hypergradient: Hypergradient = "exact",
    ) -> None:
        check_outer(outer, outer_batch_size)
        if not (beta > 0 and delta > 0):
            raise InputError(f"beta and delta must be > 0, not {beta} and {delta}")
        if hypergradient not in ("exact", "forward", "finite_difference"):
            raise InputError(f"hypergradient must be exact, forward or finite_difference for rw, not {hypergradient!r}")
        self.beta, self.delta = beta, delta
        self.outer, self.outer_batch_size = outer, outer_batch_size
        self.hypergradient = hypergradient
        self._pending: list[Tensor] = []

    def before_forward(self, step: TrainingStep) -> None:
        """Find the ratios of the step's samples."""
        lookahead, held_out = step.lookahead, step.outer()
        student, temperature = lookahead.student, lookahead.temperature
        own = trainable(student)
        params = {name: param.detach().requires_grad_() for name, param in own.items()}
        with eval_mode(student), torch.enable_grad():
            logits = functional_logits(student, params, {}, held_out.inputs)
            assert held_out.teacher_logits is not None
            meta = gt_loss(logits, held_out.target) + kd_loss(logits, held_out.teacher_logits, temperature)
            found = torch.autograd.grad(meta.mean(), list(params.values()), allow_unused=True)
        gradient = {name: g for name, g in zip(params, found, strict=True) if g is not None}
        rates = {h.name: float(h.group["lr"]) for h in held_by(lookahead.optimizer, own, assume_sgd=True)}
        direction = {name: rates[name] * g for name, g in gradient.items() if name in rates}

        parts: list[MicroBatch] = []
        for batch in step.batches:
            assert batch.teacher_logits is not None
            parts.append(new_part(student, self.hypergradient, batch.inputs, batch.target, batch.teacher_logits))
        before = {name: param.detach() for name, param in params.items()}
        moved, self.hypergradient = logits_along(student, parts, before, direction, self.hypergradient)
        self._pending = []
        for part, (logits, tangent) in zip(parts, moved, strict=True):
            kd_helps = (kd_slope(logits, part.teacher_logits, temperature) * tangent).sum(dim=-1)
            gt_helps = (gt_slope(logits, part.target) * tangent).sum(dim=-1)
            u_kd, u_gt = ((self.beta * helps).clamp(min=self.delta) for helps in (kd_helps, gt_helps))
            self._pending.append(u_kd / (u_kd + u_gt))

    def alpha(self, signals: Signals) -> Tensor:
        """The ratios found before the forward pass of this batch."""
        if not self._pending:
            raise NotImplementedError("the ratios of rw belong to a training step: they are no function of the sample")
        return self._pending.pop(0)

    def loss(self, signals: Signals) -> SampleLoss:
        """``(1 - alpha_i) gt_i + alpha_i tau^2 softCE_i``."""
        alpha = self.alpha(signals)
        soft = signals.temperature**2 * soft_ce_loss(signals.student_logits, signals.teacher, signals.temperature)
        return SampleLoss(alpha * soft + (1 - alpha) * signals.gt, alpha)
