"""The same as :mod:`tgeokd.bilevel.estimators.forward` by central difference, for models that forward mode does not cover."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tgeokd.bilevel.functional import Tensors
from tgeokd.bilevel.record import MicroBatch

__all__ = ["logit_derivatives"]


def logit_derivatives(
    student: nn.Module, parts: list[MicroBatch], params: Tensors, direction: Tensors
) -> list[tuple[Tensor, Tensor]]:
    """Logits at ``params`` and their derivative along ``direction`` from two forward passes, both with error O(h^2).

    The step is ``h = eps^(1/3) |theta| / |direction|`` with the machine precision ``eps``, where rounding and truncation
    are of one size: the parameters move by about half a percent in float32, by six millionths in float64. ``|theta|`` counts
    only entries that the direction moves. Arguments, result and what is left untouched as in
    :func:`tgeokd.bilevel.estimators.forward.logit_derivatives`.
    """
    moved = {name: d for name, d in direction.items() if name in params}
    with torch.no_grad():
        length = torch.cat([d.flatten() for d in moved.values()]).norm()
        # `where` rather than a mask, which an accelerator would have to be waited for
        size = torch.cat([torch.where(d != 0, params[name], 0.0).flatten() for name, d in moved.items()]).norm()
        precision = torch.finfo(length.dtype).eps
        # along the zero vector every derivative is zero, whatever the step
        h = torch.where(length > 0, precision ** (1 / 3) * size.clamp(min=1e-4) / length, 1.0)

        def at(part: MicroBatch, sign: float) -> Tensor:
            shifted = {n: value + sign * h * moved[n] if n in moved else value for n, value in params.items()}
            # A small difference would drown in half precision's rounding.
            return replace(part, context=part.context.in_full_precision()).replay(student, shifted)

        results = []
        for part in parts:
            above, below = at(part, 1.0), at(part, -1.0)
            results.append(((above + below) / 2, (above - below) / (2 * h)))
        return results
