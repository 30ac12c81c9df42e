"""The record of one training step, from which every estimator of the hypergradient works.

The step takes ``theta`` to ``theta' = theta - update(c(g), state)``, where ``g`` is the gradient of the fused loss, ``c`` the
clipping by norm (if any) and ``update`` the optimizer's rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tgeokd.bilevel.functional import Tensors, current_buffers, functional_logits, modes, trainable
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.bilevel.step_vjp import OptimizerSlot, StepVJP
from tgeokd.bilevel.terms import LossTerms
from tgeokd.core.model_call import (
    Modes,
    RandomState,
    class_logits,
    in_modes,
    module_device,
    random_state,
    replayed,
    sliced,
)


@dataclass(frozen=True)
class PassContext:
    """Settings of the training forward pass that further passes must share."""

    device: str
    autocast: torch.dtype | None
    math_attention: bool

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a block under these settings."""
        with ExitStack() as stack:
            on = self.autocast is not None
            if on or torch.is_autocast_enabled(self.device):
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

    inputs: Any  # of n samples; None where the pass is never run again
    random_state: RandomState  # before the pass
    buffers: Tensors  # the student's, before the pass, by name
    modes: Modes  # which of the student's modules were in training mode
    context: PassContext  # precision and attention kernel of the pass
    student_logits: Tensor = field(default_factory=lambda: torch.empty(0))  # of the pass, detached, shape (n, C)
    features: Tensor | None = None  # inputs of the classifier head, shape (n, H), where the estimator uses them
    weight: Tensor | None = None  # factor of this microbatch's mean loss in the backward pass, shape (); None before
    alpha: Tensor | None = None  # learned weights, shape (n,); None before the loss is known
    loss_terms: LossTerms | None = None  # how the loss depends on them; None before it is known

    @classmethod
    def begin(
        cls,
        student: nn.Module,
        inputs: Any,
        *,
        math_attention: bool = False,
        replays: bool = True,
        buffers: Tensors | None = None,
    ) -> MicroBatch:
        """The state before a forward pass of a student in the modes of the pass.

        ``math_attention`` selects the attention kernel that has a forward-mode derivative. With ``replays`` it keeps what it
        takes to run the pass again, with copies of ``buffers`` (by name), by default the student's own.
        """
        device = module_device(student)
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        context = PassContext(device.type, autocast, math_attention)
        if not replays:
            return cls(None, random_state(device), {}, [], context)
        kept = current_buffers(student) if buffers is None else {name: b.clone() for name, b in buffers.items()}
        return cls(inputs, random_state(device), kept, modes(student), context)

    def first(self, count: int) -> MicroBatch:
        """The first samples alone, not yet run."""
        terms = self.terms.first(count)
        return replace(self, inputs=sliced(self.inputs, slice(count)), student_logits=torch.empty(0), loss_terms=terms)

    def replay(self, student: nn.Module, params: Tensors) -> Tensor:
        """Student logits of this pass at other parameters: same mode, dropout mask, buffers and precision."""
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        with replayed(self.random_state), in_modes(self.modes), self.context():
            return functional_logits(student, params, buffers, self.inputs)

    @property
    def terms(self) -> LossTerms:
        """How the loss depends on the learned weights, of a pass whose loss is known."""
        assert self.loss_terms is not None
        return self.loss_terms

    def __len__(self) -> int:
        return len(self.student_logits)


@dataclass
class StepRecord:
    """One finished training step."""

    student: nn.Module  # in training mode as it was in the step
    microbatches: list[MicroBatch]
    params: Tensors  # trainable parameters before the step, by name; empty where the estimator does not need them
    after: Tensors | None  # the same after the step; None where the student itself holds them
    vjp: StepVJP  # transposed Jacobian of the step
    gradient: Tensors  # of the training loss in the step, by name, of the parameters that the estimator uses
    slots: list[OptimizerSlot]  # the optimizer's view of the parameters before the step; only for ``unrolled``
    alpha: Tensor  # the learned weights that the step used, shape (N,)
    buffers: Tensors = field(default_factory=dict)  # the student's after the step, by name, where it does not hold them

    @property
    def size(self) -> int:
        """Samples in the step, N."""
        return sum(map(len, self.microbatches))

    def weights(self) -> list[Tensor | float]:
        """Share of each microbatch's mean loss in the loss of the step, from the backward passes; they sum to 1."""
        if len(self.microbatches) == 1:
            return [1.0]
        found = [m.weight for m in self.microbatches if m.weight is not None]
        if len(found) < len(self.microbatches):
            return [len(m) / self.size for m in self.microbatches]
        stacked = torch.stack(found)
        return list((stacked / stacked.sum()).unbind())  # a common factor (the scale of a ``GradScaler``) cancels

    def per_sample(self, values: Sequence[Tensor]) -> Tensor:
        """The hypergradient (N,): ``-w_k / n_k`` times the inner products of the samples, shape (n,) by microbatch."""
        if len(values) == 1:
            return -values[0] / self.size
        shares = [weight / len(m) for weight, m in zip(self.weights(), self.microbatches, strict=True)]
        return torch.cat([-value * share for value, share in zip(values, shares, strict=True)])

    def direction(self, v: Tensors, outer: OuterDirection | None) -> Tensors:
        """``J^T v``, or what replaces it (:class:`~tgeokd.bilevel.outer_direction.OuterDirection`)."""
        return self.vjp(v) if outer is None else outer.project(self.vjp(outer.averaged(v)), self.gradient)

    def outer_logits(self, inputs: Any, params: Tensors | None = None) -> Tensor:
        """Student logits on validation inputs after the step, in eval mode: no dropout, no running statistic moves."""
        last = self.microbatches[-1]
        params = self.after if params is None else params
        in_eval = in_modes([(module, False) for module, _ in modes(self.student)])
        with in_eval, replace(last.context, math_attention=False)(), replayed(last.random_state):
            if params is None:
                return class_logits(self.student, inputs)
            return functional_logits(self.student, params, self.buffers, inputs)

    def outer_gradient(self, inputs: Any, target: Tensor) -> Tensors:
        """``v = d L_val / d theta'``, the gradient of the mean validation cross-entropy after the step."""
        given = None
        if self.after is not None:
            given = {name: param.detach().requires_grad_() for name, param in self.after.items()}
        with torch.enable_grad():
            loss = F.cross_entropy(self.outer_logits(inputs, given), target)
        after = trainable(self.student) if given is None else given
        found = torch.autograd.grad(loss, list(after.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(after, found, strict=True) if g is not None}
        return {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}
