"""``unrolled``: backpropagation through the training step, the reference that tests compare the other estimators with.

It is second-order, slow and uses much memory, and shares nothing with the directional derivatives that it checks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.bilevel.estimators.base import ESTIMATORS, Estimator, OuterBatch
from tgeokd.bilevel.record import StepRecord
from tgeokd.bilevel.step_vjp import Clip, functional_step
from tgeokd.utils.errors import InputError


@ESTIMATORS.register("unrolled")
class UnrolledEstimator(Estimator):
    """Exact, at about four further training steps. It differentiates the validation loss itself: no ``direction``."""

    math_attention = True
    needs_slots = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.direction is not None or self.inner_samples is not None:
            raise InputError(
                "hypergradient='unrolled' differentiates the validation loss of all samples: it needs ema_decay=0, "
                "project_out_step_length=False and no inner_samples"
            )

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """The exact hypergradient, shape (N,)."""
        val_inputs, val_target = outer_batch
        with torch.enable_grad():
            alpha = record.alpha.detach().requires_grad_()
            params = {name: param.detach().requires_grad_() for name, param in record.params.items()}
            losses = []
            ratios = alpha.split([len(m) for m in record.microbatches])
            for microbatch, weight, ratio in zip(record.microbatches, record.weights(), ratios, strict=True):
                logits = microbatch.replay(record.student, params)
                losses.append(weight * microbatch.terms.loss(logits, ratio).mean())
            total = torch.stack(losses).sum()
            found = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)
            gradients = {name: g for name, g in zip(params, found, strict=True) if g is not None}
            clip = record.vjp.clip
            if clip is not None:
                norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
                gradients = {name: Clip(clip.max_norm, norm).coefficient * g for name, g in gradients.items()}
            after = functional_step(record.slots, params, gradients)
            loss = F.cross_entropy(record.outer_logits(val_inputs, after), val_target)
            return torch.autograd.grad(loss, alpha)[0]
