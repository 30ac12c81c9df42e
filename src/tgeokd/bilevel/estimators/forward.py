"""How a student's logits move along one direction in parameter space, by forward-mode AD."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from tgeokd.bilevel.functional import Tensors
from tgeokd.bilevel.record import MicroBatch

__all__ = ["logit_derivatives"]


def logit_derivatives(
    student: nn.Module, parts: list[MicroBatch], params: Tensors, direction: Tensors
) -> list[tuple[Tensor, Tensor]]:
    """Logits at ``params`` and their derivative along ``direction``: one forward pass that carries a tangent.

    Args:
        student: the module; neither it nor its buffers nor the random state change.
        parts: micro-batches to run again, each under the random state and buffers it met.
        params: the point, by parameter name.
        direction: the direction by name; names left out are zero.

    Returns:
        For each micro-batch two tensors of shape (n, C).

    Raises:
        NotImplementedError: from torch, where an operation of the student has no forward-mode derivative.
    """
    _load_torch_decompositions()
    results: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        with torch.no_grad(), fwAD.dual_level():
            dual = {
                name: fwAD.make_dual(value, direction[name]) if name in direction else value
                for name, value in params.items()
            }
            logits, tangent = fwAD.unpack_dual(part.replay(student, dual))
            results.append((logits, torch.zeros_like(logits) if tangent is None else tangent))
    return results


@cache
def _load_torch_decompositions() -> None:
    """Make the first dual tensor, upon which torch compiles its decompositions and warns of its own deprecated way to."""
    with warnings.catch_warnings(), fwAD.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        fwAD.make_dual(torch.zeros(()), torch.zeros(()))
