"""Recording a training step: its forward passes, its gradient and the parameters before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.estimators.base import Estimator
from tgeokd.bilevel.estimators.last_layer import capture
from tgeokd.bilevel.functional import Tensors, trainable
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.bilevel.step_vjp import Clip, StepVJP, optimizer_slots, step_diagonal
from tgeokd.bilevel.terms import LossTerms
from tgeokd.utils.errors import InputError


@contextmanager
def recorded_pass(
    estimator: Estimator, student: nn.Module, inputs: Any, buffers: Tensors | None = None
) -> Iterator[MicroBatch]:
    """Run a forward pass in the context that a resolved estimator needs, and keep what it needs of the pass."""
    microbatch = MicroBatch.begin(
        student, inputs, math_attention=estimator.math_attention, replays=estimator.replays, buffers=buffers
    )
    with microbatch.context():
        if estimator.head is None:
            yield microbatch
            return
        with capture(estimator.head) as features:
            yield microbatch
        if len(features) != 1:
            raise InputError(f"the student's classifier head ran {len(features)} times in one forward pass, not once")
        (microbatch.features,) = features


@dataclass(eq=False)
class StepRecorder:
    """Records one training step after another, for one student and optimizer."""

    student: nn.Module
    optimizer: Optimizer
    estimator: Estimator  # what the record is for; resolved with the first recorded pass
    clip_norm: float | None  # the caller clips the gradient to this norm before the step
    assume_sgd: bool  # treat the step of an unknown optimizer as plain SGD's
    microbatches: list[MicroBatch] = field(default_factory=list)  # of the running step
    _resolved: bool = False
    _ran_backward: bool = False  # a backward pass of the running step has ended
    _norm: Tensor | None = None

    @property
    def awaits_loss(self) -> bool:
        """Whether :meth:`complete` is to be called, for the last forward pass alone."""
        waiting = [m.alpha is None for m in self.microbatches]
        return sum(waiting) == 1 and waiting[-1]

    @contextmanager
    def forward_pass(self, inputs: Any) -> Iterator[None]:
        """Record the forward pass that the block runs."""
        if not self._resolved:
            state = MicroBatch.begin(self.student, inputs)
            self.estimator, self._resolved = self.estimator.resolve(self.student, self.optimizer, state), True
        with recorded_pass(self.estimator, self.student, inputs) as microbatch:
            yield
        self.microbatches.append(microbatch)

    def complete(self, student_logits: Tensor, terms: LossTerms, alpha: Tensor, loss: Tensor) -> None:
        """Add to the last forward pass its logits (n, C), loss terms and weights (n,), and the mean loss."""
        microbatch = self.microbatches[-1]
        microbatch.student_logits = student_logits.detach()
        microbatch.loss_terms, microbatch.alpha = terms, alpha

        def note(weight: Tensor) -> None:
            self._drop_skipped()
            microbatch.weight = weight.detach()
            queue = torch.autograd.Variable._execution_engine.queue_callback
            queue(lambda: queue(self._end_backward))  # after callbacks queued during it, such as DDP's reduction

        loss.register_hook(note)

    def finish(self) -> StepRecord:
        """The record of the coming step. To be called after backward and clipping, before the optimizer's step."""
        microbatches, self.microbatches, self._ran_backward = self.microbatches, [], False
        moved = self.estimator.parameters(self.student)
        # Copies: an optimizer may change the gradients in its step (SGD with nesterov and foreach does).
        gradients = {name: param.grad.detach().clone() for name, param in moved.items() if param.grad is not None}
        scaler = getattr(self.optimizer, "grad_scale", None)
        if isinstance(scaler, Tensor):  # a fused optimizer unscales in its step
            gradients = {name: g / scaler for name, g in gradients.items()}
        slots = optimizer_slots(self.optimizer, moved, assume_sgd=self.assume_sgd)
        clip = None if self.clip_norm is None else Clip(self.clip_norm, self._norm_of_step(microbatches))
        vjp = StepVJP(step_diagonal(slots, moved, gradients), clip, gradients)
        before = {}
        if self.estimator.replays:
            before = {name: p.detach().clone() for name, p in trainable(self.student).items()}
        slots = [slot.snapshot() for slot in slots] if self.estimator.needs_slots else []
        alphas = [m.alpha for m in microbatches if m.alpha is not None]
        alpha = torch.cat(alphas) if len(alphas) > 1 else alphas[0]
        return StepRecord(self.student, microbatches, before, None, vjp, gradients, slots, alpha)

    def forget(self) -> None:
        """Drop the microbatches of a step that was not taken."""
        self.microbatches, self._ran_backward, self._norm = [], False, None

    def _end_backward(self) -> None:
        self._ran_backward = True
        if self.clip_norm is not None:  # the norm before clipping is that at the end of the last backward pass
            gradients = [p.grad for p in trainable(self.student).values() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm([g.detach() for g in gradients])

    def _norm_of_step(self, microbatches: list[MicroBatch]) -> Tensor:
        """Norm of the gradient before clipping, without the scale of a ``GradScaler``."""
        norm, self._norm = self._norm, None
        if norm is None:
            raise InputError("clip_norm needs the losses of DistillationStep to be backpropagated before the step")
        return norm / torch.stack([m.weight for m in microbatches if m.weight is not None]).sum()

    def _drop_skipped(self) -> None:
        """Forget passes of a step that was skipped (as a ``GradScaler`` does): their gradients have been zeroed since."""
        params = (param for group in self.optimizer.param_groups for param in group["params"])
        if self._ran_backward and all(param.grad is None for param in params):
            self.microbatches = [m for m in self.microbatches if m.weight is None]
        self._ran_backward = False
