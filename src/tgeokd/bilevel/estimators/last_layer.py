"""The part of the hypergradient that goes through the classifier head, in closed form from features already computed.

For logits ``z = W h + b`` the gradients of ``kd_i`` and ``gt_i`` with respect to (W, b) are outer products of a residual and
the features, so the inner product with any direction needs no further pass. What is left out is everything that flows
through the layers below the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.bilevel.functional import trainable
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.bilevel.record import InnerStep, MicroBatch, signal_difference_slope
from tgeokd.core.losses import gt_slope
from tgeokd.utils.errors import InputError

__all__ = ["NoHeadError", "capture", "find_head", "ratio_gradient"]


class NoHeadError(InputError):
    """The student has no classifier head to restrict the hypergradient to.

    Attributes:
        reason: why not, a sentence about the student without its subject.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            "hypergradient='last_layer' needs a trainable classifier head, an nn.Linear whose outputs are the logits; "
            f"this student's {reason}: use 'forward' or 'exact'"
        )


def find_head(student: nn.Module, part: MicroBatch) -> nn.Linear:
    """The linear layer whose outputs are the student's logits, found by running one micro-batch again.

    Raises:
        NoHeadError: where the logits do not come straight out of an ``nn.Linear`` that is trained and used once.
    """
    outputs: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, output: outputs.append((m, output)))
        for module in student.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = part.replay(student, {})
    finally:
        for handle in handles:
            handle.remove()
    for module, output in reversed(outputs):
        own = _of_head(logits, module)
        if output.shape == own.shape and torch.equal(output.to(own.dtype), own):
            if not module.weight.requires_grad:
                raise NoHeadError("is frozen")
            if sum(each is module for each, _ in outputs) > 1:
                raise NoHeadError("is used more than once in a forward pass")
            return module
    raise NoHeadError("logits are the output of none")


@contextmanager
def capture(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect the head's inputs, one tensor of shape (n, H) a forward pass."""
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
    try:
        yield features
    finally:
        handle.remove()


def ratio_gradient(
    step: InnerStep, val_inputs: Any, val_target: Tensor, direction: OuterDirection | None = None
) -> Tensor:
    """``d L_val / d alpha_i`` restricted to the head, shape (N,).

    Args:
        step: the finished training step; it knows the head, and its micro-batches hold features.
        val_inputs: held-out inputs.
        val_target: held-out labels, shape (M,).
        direction: what stands for the held-out gradient; by default that itself.
    """
    head = step.head
    assert head is not None
    names = {id(param): name for name, param in trainable(step.student).items()}
    weight_name, bias_name = names.get(id(head.weight)), names.get(id(head.bias))
    if weight_name is None:
        raise InputError(
            "hypergradient='last_layer' needs a trainable classifier head, and this student's has been frozen since"
        )
    with torch.no_grad():
        with capture(head) as captured:
            val_logits = step.outer_logits(val_inputs)
        (val_features,) = captured
        dtype = head.weight.dtype
        residual = _of_head(gt_slope(val_logits, val_target), head).to(dtype) / len(val_target)
        v = {weight_name: residual.T @ val_features.to(dtype)}
        if bias_name is not None:
            v[bias_name] = residual.sum(dim=0)
        along = step.direction(v, direction)

        products = []
        for part in step.parts:
            assert part.features is not None
            slope = signal_difference_slope(part.student_logits, part, step.temperature)
            difference = _of_head(slope, head).to(dtype)
            # a tensor that the optimizer does not hold has no direction: it does not move, whatever alpha is
            moved = torch.zeros_like(difference)
            if weight_name in along:
                moved += part.features.to(dtype) @ along[weight_name].T
            if bias_name in along:
                moved += along[bias_name]
            products.append((difference * moved).sum(dim=-1))
        return -torch.cat(products) / step.size


def _of_head(slope: Tensor, head: nn.Linear) -> Tensor:
    """Slopes with respect to the head's own outputs: a one-logit head's is the second of ``(0, z)``."""
    return slope[:, 1:] if head.out_features == 1 else slope
