"""Which way the held-out loss falls, freed of what one step's lookahead gets wrong about a whole training.

The gradient of the held-out loss right after a step, ``v``, answers for that step alone, and two things in it do not carry
over to training as a whole (docs/why-it-works.md has the measurements):

- **the noise of the step itself.** ``v`` is taken where the step's own batch has moved the student, so the term with the
  smaller gradient looks better than it is: it does less harm at a high learning rate. Held-out batches are small, too. An
  average of ``v`` over steps depends on no single one of them.
- **the length of the step.** Fusion ratios also scale the gradient, so they are moved to take longer or shorter steps. What
  lies along the step's gradient ``g`` is the derivative by its length; to take it out leaves the derivative of the *angle*
  between step and held-out gradient, which no common factor of the loss can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tgeokd.bilevel.functional import Tensors
from tgeokd.utils.errors import InputError

__all__ = ["OuterDirection"]

SMALLEST = 1e-30  # of a squared length that something may be divided by


class OuterDirection:
    """What stands for the held-out gradient in ``d L_val / d alpha``.

    Args:
        average: decay of the moving averages of ``v`` and of the step's gradient, from one use to the next, in [0, 1); 0 takes
            those of the step alone.
        fixed_length: take out of the direction what would only change the length of the step.
    """

    def __init__(self, average: float = 0.0, *, fixed_length: bool = False) -> None:
        if not 0 <= average < 1:
            raise InputError(f"average must lie in [0, 1), not {average}")
        self.average, self.fixed_length = average, fixed_length
        self._outer = _Mean(average)
        self._inner = _Mean(average)

    def averaged(self, v: Tensors) -> Tensors:
        """Take note of a held-out gradient, given by parameter name; returns the average so far, each weighed right."""
        return self._outer.add(v)

    def at_fixed_length(self, direction: Tensors, gradient: Tensors) -> Tensors:
        """The part of ``J^T v`` orthogonal to the (averaged) gradient of the step.

        Args:
            direction: ``J^T v`` by parameter name.
            gradient: of the training loss by the same parameters, in the step; names it lacks count as zero.
        """
        if not self.fixed_length:
            return direction
        mean = self._inner.add({name: gradient[name] for name in direction if name in gradient})
        names = [name for name in direction if name in mean]
        if not names:
            return direction
        product = torch.stack([(direction[name] * mean[name]).sum() for name in names]).sum()
        square = torch.stack([mean[name].square().sum() for name in names]).sum()
        share = product / square.clamp_min(SMALLEST)
        return {**direction, **{name: direction[name] - share * mean[name] for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """The averages so far."""
        return {"outer": self._outer.state_dict(), "inner": self._inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._outer.load_state_dict(state["outer"])
        self._inner.load_state_dict(state["inner"])


class _Mean:
    """A moving average of tensors by name, free of the zeros it starts from (as Adam's)."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weight: dict[str, float] = {}
        self.total: Tensors = {}

    def add(self, values: Tensors) -> Tensors:
        if not self.decay:
            return values
        for name, value in values.items():
            if name not in self.total:
                self.total[name], self.weight[name] = torch.zeros_like(value), 0.0
            self.total[name].lerp_(value, 1 - self.decay)
            self.weight[name] += (1 - self.decay) * (1 - self.weight[name])
        return {name: self.total[name] / self.weight[name] for name in values}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": dict(self.weight), "total": dict(self.total)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight, self.total = dict(state["weight"]), dict(state["total"])
