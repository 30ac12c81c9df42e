"""The record of one training step, from which every way to the hypergradient works.

A training step takes ``theta`` to ``theta' = theta - update(c(g), state)``, where ``g`` is the gradient of the fused loss,
``c`` the clipping by norm (if any) and ``update`` the optimizer's rule. The hypergradient asks how the held-out loss at
``theta'`` answers to ``alpha``, so it needs the parameters before and after, the micro-batches with the random state and
buffers they met, and the transposed Jacobian of the step with respect to ``g``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from tgeokd.bilevel.functional import Tensors, functional_logits, modes, trainable
from tgeokd.bilevel.optimizer_rules import Slope, UpdateRule, rule_of, unwrapped
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.core.losses import gt_slope, kd_slope
from tgeokd.core.model_call import Modes, RandomState, class_logits, in_modes, replayed, sliced

__all__ = [
    "CLIP_EPS",
    "Clip",
    "Held",
    "InnerStep",
    "MicroBatch",
    "PassContext",
    "Pullback",
    "functional_step",
    "held_by",
    "signal_difference_slope",
    "slopes",
]

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_
JOINED_BELOW = 1 << 16  # entries; above, a copy costs more than the calls it saves


@dataclass(frozen=True)
class PassContext:
    """Settings of the training forward that the extra passes must share."""

    device: str
    autocast: torch.dtype | None
    math_attention: bool

    @classmethod
    def current(cls, device: torch.device, *, math_attention: bool) -> PassContext:
        """The settings in force now."""
        on = torch.is_autocast_enabled(device.type)
        return cls(device.type, torch.get_autocast_dtype(device.type) if on else None, math_attention)

    def without_math_attention(self) -> PassContext:
        """The same with whatever attention kernel is fastest."""
        return replace(self, math_attention=False)

    def in_full_precision(self) -> PassContext:
        """The same without autocast."""
        return replace(self, autocast=None)

    def __call__(self) -> AbstractContextManager[None]:
        """Run a block under these settings."""
        plain = self.autocast is None and not torch.is_autocast_enabled(self.device) and not self.math_attention
        return nullcontext() if plain else self._enforced()

    @contextmanager
    def _enforced(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.autocast is not None or torch.is_autocast_enabled(self.device):
                on = self.autocast is not None
                stack.enter_context(torch.autocast(self.device, dtype=self.autocast, enabled=on))
            if self.math_attention:
                # Neither flash attention nor the fused encoder layer has a forward-mode derivative.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
            yield


@dataclass
class MicroBatch:
    """One forward pass of the step, and what it takes to run the same pass again."""

    inputs: Any
    target: Tensor
    teacher_logits: Tensor
    random_state: RandomState
    buffers: Tensors
    modes: Modes
    context: PassContext
    student_logits: Tensor = field(default_factory=lambda: torch.empty(0))  # detached; set by the forward pass
    features: Tensor | None = None  # inputs of the classifier head, for `last_layer`; set by the forward pass

    def first(self, count: int) -> MicroBatch:
        """The first samples alone, not yet run."""
        rows = slice(count)
        cut = {"inputs": sliced(self.inputs, rows), "target": self.target[rows]}
        return replace(self, **cut, teacher_logits=self.teacher_logits[rows], student_logits=torch.empty(0))

    def replay(self, student: nn.Module, params: Tensors) -> Tensor:
        """Student logits of this pass for other parameters: same mode, dropout mask, buffers and precision."""
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        with replayed(self.random_state), in_modes(self.modes), self.context():
            return functional_logits(student, params, buffers, self.inputs)


@dataclass(frozen=True)
class Clip:
    """Gradient clipping by norm as a differentiable part of the step.

    Attributes:
        max_norm: the bound.
        norm: norm of the whole gradient before clipping, shape ().
    """

    max_norm: float
    norm: Tensor

    @property
    def coefficient(self) -> Tensor:
        """What the gradient is multiplied by, shape ()."""
        return (self.max_norm / (self.norm + CLIP_EPS)).clamp(max=1.0)


@dataclass
class Pullback:
    """The transposed Jacobian of the step's update with respect to the gradient ``g``.

    Without clipping it multiplies by ``D``. With ``g`` clipped to ``c g``, ``c = max_norm / (|g| + eps)``, it is
    ``(c I - c g g^T / (|g| (|g| + eps))) D``.

    Attributes:
        slopes: ``D`` by parameter name; a parameter that the optimizer does not hold has none.
        clip: the clipping, or None.
        clipped_gradients: ``c g`` by name; read only with ``clip``.
    """

    slopes: Mapping[str, Slope]
    clip: Clip | None = None
    clipped_gradients: Tensors = field(default_factory=dict)

    def __call__(self, vectors: Tensors) -> Tensors:
        """Apply it to one vector, given by parameter name (names left out are zero)."""
        scaled = {name: self.slopes[name] * vector for name, vector in vectors.items() if name in self.slopes}
        if self.clip is None:
            return scaled
        c, norm = self.clip.coefficient, self.clip.norm
        along = sum((self.clipped_gradients[name] * vector).sum() for name, vector in scaled.items())
        # (c g) is what is at hand, hence the division by c^2; nothing is projected where clipping did not bite.
        share = torch.where(c < 1.0, along / (c * norm * (norm + CLIP_EPS)), 0.0)
        gradients = self.clipped_gradients
        return {name: c * scaled.get(name, 0.0) - share * gradients[name] for name in scaled.keys() | gradients.keys()}


@dataclass
class InnerStep:
    """One finished training step.

    Attributes:
        student: the module, in training mode as it was in the step.
        temperature: ``tau`` of the teacher term.
        parts: its micro-batches, in order.
        params: trainable parameters before the step, by name.
        after: the same after the step; None where the student itself holds them.
        pullback: transposed Jacobian of the step.
        held: the optimizer's view of the parameters before the step; read by `unrolled` alone.
        buffers: the student's buffers after the step, by name, where they are not those it holds.
        head: the classifier head, for `last_layer`.
        gradient: of the training loss in the step, by name, of the parameters the hypergradient asks about.
    """

    student: nn.Module
    temperature: float
    parts: list[MicroBatch]
    params: Tensors
    after: Tensors | None
    pullback: Pullback
    held: list[Held] = field(default_factory=list)
    buffers: Tensors = field(default_factory=dict)
    head: nn.Linear | None = None
    gradient: Tensors = field(default_factory=dict)

    def direction(self, v: Tensors, outer: OuterDirection | None) -> Tensors:
        """``J^T v``, or what stands for it (:class:`~tgeokd.bilevel.outer_direction.OuterDirection`)."""
        if outer is None:
            return self.pullback(v)
        return outer.at_fixed_length(self.pullback(outer.averaged(v)), self.gradient)

    @property
    def size(self) -> int:
        """Samples in the step, N."""
        return sum(len(part.target) for part in self.parts)

    def outer_logits(self, inputs: Any, params: Tensors | None = None) -> Tensor:
        """Student logits on held-out inputs after the step, in eval mode: no dropout, no running statistic moves."""
        last = self.parts[-1]
        params = self.after if params is None else params
        in_eval = in_modes([(module, False) for module, _ in modes(self.student)])
        with in_eval, last.context.without_math_attention()(), replayed(last.random_state):
            if params is None:
                return class_logits(self.student, inputs)
            return functional_logits(self.student, params, self.buffers, inputs)

    def outer_gradient(self, inputs: Any, target: Tensor) -> Tensors:
        """``v = d L_val / d theta'``, the gradient of the mean held-out cross-entropy after the step."""
        if self.after is None:
            after, given = trainable(self.student), None
        else:
            after = given = {name: param.detach().requires_grad_() for name, param in self.after.items()}
        with torch.enable_grad():
            loss = F.cross_entropy(self.outer_logits(inputs, given), target)
        gradients = torch.autograd.grad(loss, list(after.values()), allow_unused=True)
        return {name: _dense(g) for name, g in zip(after, gradients, strict=True) if g is not None}


def signal_difference_slope(logits: Tensor, part: MicroBatch, temperature: float) -> Tensor:
    """Derivative of ``kd_i - gt_i``, which is what ``alpha_i`` multiplies, by the student's logits, shape (n, C)."""
    return kd_slope(logits, part.teacher_logits, temperature) - gt_slope(logits, part.target)


@dataclass(frozen=True)
class Held:
    """A parameter as the optimizer holds it: what its rule needs to know before the step."""

    name: str
    size: int
    rule: UpdateRule
    state: Mapping[str, Any]
    group: Mapping[str, Any]

    def snapshot(self) -> Held:
        """A copy that a later step of the optimizer does not change."""
        state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        return Held(self.name, self.size, self.rule, state, {k: v for k, v in self.group.items() if k != "params"})


def held_by(optimizer: Optimizer, own: Tensors, *, assume_sgd: bool = False) -> list[Held]:
    """Those of a module's own parameters that the optimizer holds."""
    rule = rule_of(optimizer, assume_sgd=assume_sgd)
    optimizer = unwrapped(optimizer)
    names = {id(param): name for name, param in own.items()}
    return [
        Held(names[id(param)], param.numel(), rule, optimizer.state.get(param, {}), group)
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) in names
    ]


def slopes(held: list[Held], values: Tensors, gradients: Tensors) -> dict[str, Slope]:
    """``D`` of the step at hand, by name; a parameter without a gradient does not move and has none.

    Where a gradient is exactly zero no sample touches the entry (an embedding's row, a dead unit), so ``D`` there meets only
    zeros and is set to zero: Adam's would be ``lr / eps``, and finite differences would see little else.
    """
    found: dict[str, Slope] = {}
    for bundle in _bundles([h for h in held if h.name in gradients]):
        first, names = bundle[0], [h.name for h in bundle]
        value, gradient = _joined([values[n].detach() for n in names]), _joined([gradients[n] for n in names])
        state = {
            k: _joined([h.state[k] for h in bundle]) if k in first.rule.moments else v for k, v in first.state.items()
        }
        slope = first.rule.slope(value, gradient, state, first.group)
        if isinstance(slope, Tensor):
            slope = torch.where(gradient == 0, 0.0, slope)
            sizes = [gradients[n].numel() for n in names]
            pieces = slope.reshape(-1).split(sizes)
            found |= {n: piece.view_as(gradients[n]) for n, piece in zip(names, pieces, strict=True)}
        else:
            found |= dict.fromkeys(names, slope)
    return found


def _bundles(held: list[Held]) -> list[list[Held]]:
    """Small parameters in one state together: a dozen operations on each would cost more than the step itself."""
    together: dict[Any, list[Held]] = {}
    for h in held:
        step = h.state.get("step")  # differs where a parameter had no gradient in some step
        readable = (
            not isinstance(step, Tensor) or step.device.type == "cpu"
        )  # another device would have to be waited for
        small = h.rule.moments and h.size < JOINED_BELOW and readable
        key = (id(h.group), len(h.state), step is not None and float(step)) if small else h.name
        together.setdefault(key, []).append(h)
    return list(together.values())


def _joined(tensors: list[Tensor]) -> Tensor:
    """All entries in a row; a single tensor as it is."""
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0]


def functional_step(held: list[Held], values: Tensors, gradients: Tensors) -> Tensors:
    """The parameters after the step, as a differentiable function of the gradients; nothing is stepped."""
    moved = {
        h.name: h.rule.new_value(values[h.name], gradients[h.name], h.state, h.group)
        for h in held
        if h.name in gradients
    }
    return {**values, **moved}


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
