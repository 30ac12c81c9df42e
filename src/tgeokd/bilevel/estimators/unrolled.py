"""The hypergradient by differentiating through the training step itself: the reference that the other ways are tested against.

It runs the step again with ``create_graph=True`` and backpropagates the held-out loss to ``alpha``. Second-order, slow and
hungry for memory; nothing here is shared with the directional derivatives it checks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.bilevel.record import CLIP_EPS, InnerStep, functional_step
from tgeokd.core.losses import fuse, gt_loss, kd_loss

__all__ = ["ratio_gradient"]


def ratio_gradient(step: InnerStep, alpha: Tensor, val_inputs: Any, val_target: Tensor) -> Tensor:
    """``d L_val / d alpha_i``, shape (N,).

    Args:
        step: the finished training step.
        alpha: the step's fusion ratios, shape (N,).
        val_inputs: held-out inputs.
        val_target: held-out labels, shape (M,).
    """
    with torch.enable_grad():
        alpha = alpha.detach().requires_grad_()
        params = {name: param.detach().requires_grad_() for name, param in step.params.items()}
        losses = []
        for part, weights in zip(step.parts, alpha.split([len(p.target) for p in step.parts]), strict=True):
            logits = part.replay(step.student, params)
            kd = kd_loss(logits, part.teacher_logits, step.temperature)
            losses.append(fuse(kd, gt_loss(logits, part.target), weights))
        found = torch.autograd.grad(
            torch.cat(losses).mean(), list(params.values()), create_graph=True, allow_unused=True
        )
        gradients = {name: g for name, g in zip(params, found, strict=True) if g is not None}
        clip = step.pullback.clip
        if clip is not None:
            norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
            coefficient = (clip.max_norm / (norm + CLIP_EPS)).clamp(max=1.0)
            gradients = {name: coefficient * g for name, g in gradients.items()}
        loss = F.cross_entropy(step.outer_logits(val_inputs, functional_step(step.held, params, gradients)), val_target)
        return torch.autograd.grad(loss, alpha)[0]
