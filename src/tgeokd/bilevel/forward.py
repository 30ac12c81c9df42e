"""Derivatives of per-sample losses along one direction in parameter space, by forward-mode AD."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from tgeokd.bilevel.inner_step import MicroBatch, Tensors

__all__ = ["directional_derivative"]


def directional_derivative(
    student: nn.Module,
    parts: list[MicroBatch],
    params: Tensors,
    direction: Tensors,
    values: Callable[[Tensor, MicroBatch], Tensor],
) -> Tensor:
    """Derivative of ``values`` along ``direction`` at ``params``: one forward pass that carries a tangent.

    Args:
        student: the module; neither it nor its buffers nor the random state change.
        parts: micro-batches to run again, each under the random state and buffers it met.
        params: the point, by parameter name.
        direction: the direction by name; names left out are zero.
        values: per-sample values from a micro-batch's student logits, shape (n, ...).

    Returns:
        Shape (N, ...), micro-batches one after the other.

    Raises:
        NotImplementedError: from torch, where an operation of the student has no forward-mode derivative.
    """
    tangents: list[Tensor] = []
    for part in parts:
        with torch.no_grad(), fwAD.dual_level():
            dual = {
                name: fwAD.make_dual(value, direction[name]) if name in direction else value
                for name, value in params.items()
            }
            result = values(part.replay(student, dual), part)
            primal, tangent = fwAD.unpack_dual(result)
            tangents.append(torch.zeros_like(primal) if tangent is None else tangent)
    return torch.cat(tangents)
