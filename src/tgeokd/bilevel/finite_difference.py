"""The same derivatives as :mod:`tgeokd.bilevel.forward` by central difference, for models that forward mode does not cover."""

from __future__ import annotations

from collections.abc import Callable

import torch
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
    """Derivative of ``values`` along ``direction`` at ``params`` from two forward passes, error O(h^2).

    The step is ``h = eps^(1/3) |theta| / |direction|`` with the machine precision ``eps``, where rounding and truncation
    are of one size: the parameters move by about half a percent in float32, by six millionths in float64. ``|theta|`` counts
    only entries that the direction moves. Arguments, result and what is left untouched as in
    :func:`tgeokd.bilevel.forward.directional_derivative`.
    """
    moved = {name: d for name, d in direction.items() if name in params}
    squared_length = sum((d.square().sum() for d in moved.values()), start=torch.zeros(()))
    if not bool(squared_length > 0):
        step = torch.ones(())  # along the zero vector every derivative is zero, whatever the step
    else:
        scale = sum((params[n][d != 0].square().sum() for n, d in moved.items()), start=torch.zeros(()))
        precision = torch.finfo(next(iter(moved.values())).dtype).eps
        step = precision ** (1 / 3) * scale.clamp(min=1e-8).sqrt() / squared_length.sqrt()

    def at(sign: float) -> Tensor:
        shifted = {n: value + sign * step * moved[n] if n in moved else value for n, value in params.items()}
        return torch.cat([values(part.replay(student, shifted), part) for part in parts])

    with torch.no_grad():
        return (at(1.0) - at(-1.0)) / (2 * step)
