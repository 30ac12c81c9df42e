"""The transposed Jacobian of a training step's update with respect to the gradient, and the step as a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.functional import Tensors, trainable
from tgeokd.bilevel.optimizer_rules import Diagonal, UpdateRule, rule_of, unwrapped
from tgeokd.utils.errors import InputError

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_
JOINED_BELOW = 1 << 16  # entries; above, a copy costs more than the calls it saves


@dataclass(frozen=True)
class Clip:
    """Gradient clipping by norm as a differentiable part of the step."""

    max_norm: float
    norm: Tensor  # of the whole gradient before clipping, shape ()

    @property
    def coefficient(self) -> Tensor:
        """The factor of the gradient, shape ()."""
        return (self.max_norm / (self.norm + CLIP_EPS)).clamp(max=1.0)


@dataclass
class StepVJP:
    """The transposed Jacobian of the step's update with respect to the gradient ``g``.

    Without clipping it multiplies by the diagonal ``D``. With ``g`` clipped to ``c g``, ``c = max_norm / (|g| + eps)``, it is
    ``(c I - c g g^T / (|g| (|g| + eps))) D``.
    """

    diagonal: Mapping[str, Diagonal]  # ``D`` by parameter name; a parameter that the optimizer does not hold has none
    clip: Clip | None = None
    projection: Tensors = field(
        default_factory=dict
    )  # the clipped gradient ``c g`` by name, along which the norm changes

    def __call__(self, vectors: Tensors) -> Tensors:
        """Apply it to one vector, given by parameter name (names left out are zero)."""
        scaled = {name: self.diagonal[name] * vector for name, vector in vectors.items() if name in self.diagonal}
        if self.clip is None:
            return scaled
        c, norm = self.clip.coefficient, self.clip.norm
        along = sum((self.projection[name] * vector).sum() for name, vector in scaled.items())
        # The projection is c g, hence the division by c^2. Where the gradient was not clipped nothing is projected.
        share = torch.where(c < 1.0, along / (c * norm * (norm + CLIP_EPS)), 0.0)
        names = dict.fromkeys([*scaled, *self.projection])
        return {name: c * scaled.get(name, 0.0) - share * self.projection[name] for name in names}


@dataclass(frozen=True)
class OptimizerSlot:
    """A parameter in an optimizer: its rule, state and parameter group before the step."""

    name: str
    rule: UpdateRule
    state: Mapping[str, Any]
    group: Mapping[str, Any]

    def snapshot(self) -> OptimizerSlot:
        """A copy that a later step of the optimizer does not change."""
        state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        group = {k: v for k, v in self.group.items() if k != "params"}
        return OptimizerSlot(self.name, self.rule, state, group)


def optimizer_slots(optimizer: Optimizer, own: Tensors, *, assume_sgd: bool = False) -> list[OptimizerSlot]:
    """Those of a module's own parameters that the optimizer holds."""
    rule = rule_of(optimizer, assume_sgd=assume_sgd)
    optimizer = unwrapped(optimizer)
    names = {id(param): name for name, param in own.items()}
    return [
        OptimizerSlot(names[id(param)], rule, optimizer.state.get(param, {}), group)
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) in names
    ]


def student_slots(student: nn.Module, optimizer: Optimizer, *, assume_sgd: bool = False) -> list[OptimizerSlot]:
    """The student's trainable parameters in the optimizer; an InputError where there are none."""
    own = trainable(student)
    if not own:
        raise InputError("the student has no trainable parameter")
    slots = optimizer_slots(optimizer, own, assume_sgd=assume_sgd)
    if not slots:
        raise InputError("the optimizer holds none of the student's trainable parameters")
    return slots


def step_diagonal(slots: Iterable[OptimizerSlot], values: Tensors, gradients: Tensors) -> dict[str, Diagonal]:
    """``D`` of the coming step by name; a parameter without a gradient does not move and has none."""
    found: dict[str, Diagonal] = {}
    for bundle in _bundles([slot for slot in slots if slot.name in gradients], gradients):
        first, names = bundle[0], [slot.name for slot in bundle]
        value, gradient = _joined([values[n].detach() for n in names]), _joined([gradients[n] for n in names])
        moments = {k: _joined([slot.state[k] for slot in bundle]) for k in first.rule.moments if k in first.state}
        diagonal = first.rule.diagonal(value, gradient, {**first.state, **moments}, first.group)
        if isinstance(diagonal, Tensor):
            # No sample affects an entry with a zero gradient (an embedding row, a dead unit). Adam's D there, lr / eps, would
            # dominate finite differences.
            diagonal = torch.where(gradient == 0, 0.0, diagonal)
            pieces = diagonal.reshape(-1).split([gradients[n].numel() for n in names])
            found |= {n: piece.view_as(gradients[n]) for n, piece in zip(names, pieces, strict=True)}
        else:
            found |= dict.fromkeys(names, diagonal)
    return found


def _bundles(slots: list[OptimizerSlot], gradients: Tensors) -> list[list[OptimizerSlot]]:
    """Small parameters with the same state together: a dozen operations on each would cost more than the step itself."""
    together: dict[Any, list[OptimizerSlot]] = {}
    for slot in slots:
        step = slot.state.get("step")  # differs where a parameter had no gradient in some step
        readable = not isinstance(step, Tensor) or step.device.type == "cpu"  # reading another device would block
        small = slot.rule.moments and gradients[slot.name].numel() < JOINED_BELOW and readable
        key = (id(slot.group), len(slot.state), step is not None and float(step)) if small else slot.name
        together.setdefault(key, []).append(slot)
    return list(together.values())


def _joined(tensors: list[Tensor]) -> Tensor:
    """All entries in one row; a single tensor as it is."""
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0]


def functional_step(slots: Iterable[OptimizerSlot], values: Tensors, gradients: Tensors) -> Tensors:
    """The parameters after the step, as a differentiable function of the gradients; the optimizer is not changed."""
    moved = {
        slot.name: slot.rule.new_value(values[slot.name], gradients[slot.name], slot.state, slot.group)
        for slot in slots
        if slot.name in gradients
    }
    return {**values, **moved}
