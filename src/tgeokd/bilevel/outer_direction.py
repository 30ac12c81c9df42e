"""The direction in which the validation loss falls, without two artefacts of a lookahead of one step.

The gradient of the validation loss right after a step, ``v``, describes that step alone. Two parts of it do not carry over to
training as a whole (docs/why-it-works.md has the measurements): the noise of the step, which an average over steps reduces,
and the length of the step. Without the component along the step's gradient ``g``, the derivative is that of the *angle*
between step and validation gradient.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tgeokd.bilevel.functional import Tensors
from tgeokd.utils.errors import InputError

SMALLEST = 1e-30  # of a squared length that is divided by


class OuterDirection:
    """Replaces the validation gradient in ``d L_val / d alpha``.

    Args:
        ema_decay: decay of the moving averages of ``v`` and of the step's gradient, per use, in [0, 1); 0 takes those of the
            step alone.
        project_out_step_length: remove from the direction the component that only changes the length of the step.
    """

    def __init__(self, ema_decay: float = 0.0, *, project_out_step_length: bool = False) -> None:
        if not 0 <= ema_decay < 1:
            raise InputError(f"ema_decay must lie in [0, 1), not {ema_decay}")
        self.ema_decay, self.project_out_step_length = ema_decay, project_out_step_length
        self._means = {"outer": _Mean(ema_decay), "inner": _Mean(ema_decay)}

    def averaged(self, v: Tensors) -> Tensors:
        """Add a validation gradient, given by parameter name; returns the bias-corrected average so far."""
        return self._means["outer"].add(v)

    def project(self, direction: Tensors, gradient: Tensors) -> Tensors:
        """The part of ``J^T v`` orthogonal to the (averaged) gradient of the step, with ``project_out_step_length``.

        Both are given by parameter name; names that ``gradient`` lacks count as zero.
        """
        if not self.project_out_step_length:
            return direction
        mean = self._means["inner"].add({name: gradient[name] for name in direction if name in gradient})
        names = [name for name in direction if name in mean]
        if not names:
            return direction
        product = torch.stack([(direction[name] * mean[name]).sum() for name in names]).sum()
        square = torch.stack([mean[name].square().sum() for name in names]).sum()
        share = product / square.clamp_min(SMALLEST)
        return {**direction, **{name: direction[name] - share * mean[name] for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """The averages so far."""
        return {key: {"weight": dict(mean.weight), "total": dict(mean.total)} for key, mean in self._means.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for key, mean in self._means.items():
            mean.weight = dict(state[key]["weight"])
            mean.total = {name: value.clone() for name, value in state[key]["total"].items()}


class _Mean:
    """A bias-corrected moving average of tensors by name (as Adam's)."""

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
