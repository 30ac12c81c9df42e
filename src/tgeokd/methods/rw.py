"""`rw`: ratios per sample, meta-learned anew in every step."""

import torch
from torch import Tensor

from tgeokd.bilevel import DirectionalEstimator, build_estimator
from tgeokd.bilevel.functional import Tensors, functional_logits, trainable
from tgeokd.bilevel.step_vjp import optimizer_slots
from tgeokd.core.losses import gt_grad, gt_loss, kd_grad, kd_loss, soft_ce_loss
from tgeokd.core.model_call import eval_mode
from tgeokd.core.validation import check_positive
from tgeokd.methods.base import METHODS, ForwardContext, LossInputs, Method, Outer, SampleLoss
from tgeokd.utils.errors import InputError


@METHODS.register("rw")
class ReweightingKD(Method):
    """RW-KD: the ratio of a sample follows how much each of its two terms reduces a meta loss on validation data right now.

    In every step, weights ``e_kd``, ``e_gt`` of all samples start at 0, and one plain SGD step (with the optimizer's learning
    rate) on ``sum_i e_gt,i gt_i + e_kd,i kd_i`` is the lookahead. With the meta loss ``L = mean(gt + kd)`` on a validation
    batch, ``u = max(-beta dL/de, delta)`` and ``alpha_i = u_kd,i / (u_kd,i + u_gt,i)``. The student then trains on
    ``(1 - alpha_i) gt_i + alpha_i tau^2 softCE_i``. At weights 0 the lookahead is the present point, so ``dL/de_i`` is
    ``-lr <grad L, grad l_i>``: one forward-mode pass for all samples and both terms.

    Args:
        beta: meta learning rate. It scales all ``u`` alike, so it matters only relative to ``delta``.
        delta: smallest weight; a sample of which both terms increase the meta loss gets alpha = 0.5.
        outer: where validation batches come from: ``"holdout"``, ``"union"`` or ``"train"``.
        outer_batch_size: samples in a validation batch; by default the batch size of the validation loader.
        hypergradient: ``"exact"``, ``"forward"`` or ``"finite_difference"``.

    Reference:
        Lu, Ghaddar, Rashid, Rezagholizadeh, Ghodsi and Langlais, "RW-KD: Sample-wise Loss Terms Re-Weighting for Knowledge
        Distillation", Findings of EMNLP 2021, Algorithm 1 as a later re-implementation reads it.
    """

    needs_outer_teacher = True
    looks_before_forward = True

    def __init__(
        self,
        *,
        beta: float = 1.0,
        delta: float = 1e-8,
        outer: Outer = "holdout",
        outer_batch_size: int | None = None,
        hypergradient: str = "exact",
    ) -> None:
        self.set_outer(outer, outer_batch_size)
        check_positive("beta", beta)
        check_positive("delta", delta)
        estimator = build_estimator(hypergradient)
        if not isinstance(estimator, DirectionalEstimator):
            raise InputError(f"hypergradient must be exact, forward or finite_difference for rw, not {hypergradient!r}")
        self.beta, self.delta = beta, delta
        self.estimator: DirectionalEstimator = estimator
        self._direction: Tensors = {}
        self._ratios: list[Tensor] = []

    def before_forward(self, context: ForwardContext) -> None:
        """Find the ratios of the batch; with the first batch of a step also the direction that all batches share."""
        if context.first:
            self._direction, self._ratios = self._meta_direction(context), []
        microbatch = context.microbatch
        params = {name: param.detach() for name, param in trainable(context.student).items()}
        ((logits, tangent),) = self.estimator.logit_derivatives(context.student, [microbatch], params, self._direction)
        kd_gain = (kd_grad(logits, context.teacher_logits, context.temperature) * tangent).sum(dim=-1)
        gt_gain = (gt_grad(logits, context.target, check=False) * tangent).sum(dim=-1)
        u_kd, u_gt = ((self.beta * gain).clamp(min=self.delta) for gain in (kd_gain, gt_gain))
        self._ratios.append(u_kd / (u_kd + u_gt))

    @staticmethod
    def _meta_direction(context: ForwardContext) -> Tensors:
        """``lr`` times the gradient of the meta loss on the next validation batch, by parameter name."""
        inputs, target, teacher_logits = context.outer()
        own = trainable(context.student)
        params = {name: param.detach().requires_grad_() for name, param in own.items()}
        with eval_mode(context.student), torch.enable_grad():
            logits = functional_logits(context.student, params, {}, inputs)
            meta = gt_loss(logits, target, check=False) + kd_loss(logits, teacher_logits, context.temperature)
            found = torch.autograd.grad(meta.mean(), list(params.values()), allow_unused=True)
        slots = optimizer_slots(context.optimizer, own, assume_sgd=True)
        rates = {slot.name: float(slot.group["lr"]) for slot in slots}
        gradients = zip(params, found, strict=True)
        return {name: rates[name] * g for name, g in gradients if g is not None and name in rates}

    def alpha(self, inputs: LossInputs) -> Tensor:
        """The ratios found before the forward pass of this batch; outside of a training step a NotImplementedError."""
        if not self._ratios:
            raise NotImplementedError("the ratios of rw belong to a training step, not to a sample")
        return self._ratios.pop(0)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """``(1 - alpha_i) gt_i + alpha_i tau^2 softCE_i``."""
        alpha = self.alpha(inputs)
        soft = inputs.temperature**2 * soft_ce_loss(inputs.student_logits, inputs.teacher, inputs.temperature)
        return SampleLoss(alpha * soft + (1 - alpha) * inputs.gt, alpha)
