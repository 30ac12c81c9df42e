"""``forward``: the exact hypergradient by forward-mode automatic differentiation."""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from tgeokd.bilevel.estimators.base import ESTIMATORS, DirectionalEstimator
from tgeokd.bilevel.functional import Tensors
from tgeokd.bilevel.record import MicroBatch
from tgeokd.utils.errors import first_line


@ESTIMATORS.register("forward")
class ForwardEstimator(DirectionalEstimator):
    """Exact: one forward pass that carries a tangent, at the parameters before the step."""

    math_attention = True

    def logit_derivatives(
        self, student: nn.Module, microbatches: Sequence[MicroBatch], params: Tensors, direction: Tensors
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits and their derivative; a NotImplementedError where an operation has no forward-mode derivative."""
        _load_torch_decompositions()
        results: list[tuple[Tensor, Tensor]] = []
        try:
            for microbatch in microbatches:
                with torch.no_grad(), fwAD.dual_level():
                    dual = params | {n: fwAD.make_dual(params[n], d) for n, d in direction.items() if n in params}
                    logits, tangent = fwAD.unpack_dual(microbatch.replay(student, dual))
                    results.append((logits, torch.zeros_like(logits) if tangent is None else tangent))
        except NotImplementedError as error:
            raise NotImplementedError(
                f"forward-mode AD does not support an operation of the student ({first_line(error)}); use "
                "hypergradient='finite_difference' or 'exact'"
            ) from error
        return results


@cache
def _load_torch_decompositions() -> None:
    """Make the first dual tensor: torch compiles its decompositions then, and warns of its own deprecated functions."""
    with warnings.catch_warnings(), fwAD.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        fwAD.make_dual(torch.zeros(()), torch.zeros(()))
