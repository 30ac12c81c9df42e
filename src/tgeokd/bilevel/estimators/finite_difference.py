"""``finite_difference``: the hypergradient by central difference, for models that forward mode does not cover."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tgeokd.bilevel.estimators.base import ESTIMATORS, DirectionalEstimator
from tgeokd.bilevel.functional import Tensors
from tgeokd.bilevel.record import MicroBatch


@ESTIMATORS.register("finite_difference")
class FiniteDifferenceEstimator(DirectionalEstimator):
    """Exact to O(h^2): two more forward passes, at the parameters before the step moved along the direction."""

    def logit_derivatives(
        self, student: nn.Module, microbatches: Sequence[MicroBatch], params: Tensors, direction: Tensors
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits and their derivative, both with error O(h^2).

        The step is ``h = eps^(1/3) |theta| / |direction|`` with the machine precision ``eps``, where rounding and truncation
        errors are of the same size. ``|theta|`` counts only entries that the direction moves.
        """
        moved = {name: d for name, d in direction.items() if name in params}
        with torch.no_grad():
            length = torch.cat([d.flatten() for d in moved.values()]).norm()
            # `where` instead of a mask: a mask would wait for an accelerator
            size = torch.cat([torch.where(d != 0, params[name], 0.0).flatten() for name, d in moved.items()]).norm()
            precision = torch.finfo(length.dtype).eps
            # along the zero vector every derivative is zero, whatever the step
            h = torch.where(length > 0, precision ** (1 / 3) * size.clamp(min=1e-4) / length, 1.0)

            def at(microbatch: MicroBatch, sign: float) -> Tensor:
                shifted = {n: value + sign * h * moved[n] if n in moved else value for n, value in params.items()}
                # In half precision a small difference would be lost in rounding.
                full = replace(microbatch, context=replace(microbatch.context, autocast=None))
                return full.replay(student, shifted)

            pairs = [(at(microbatch, 1.0), at(microbatch, -1.0)) for microbatch in microbatches]
            return [((above + below) / 2, (above - below) / (2 * h)) for above, below in pairs]
