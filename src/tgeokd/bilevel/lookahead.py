"""The hypergradient of the fusion ratios, with the training step itself as the lookahead.

    d L_val / d alpha_i = -(1/N) < J^T v , grad_theta (kd_i - gt_i) >  at theta,      v = grad L_val(theta')

where ``J`` is the Jacobian of the step's update with respect to the gradient (``D`` for an unclipped step). The inner
product over all ``i`` at once is the derivative of the N-vector ``kd_i - gt_i`` along ``J^T v``: no second-order graph.

:class:`Lookahead` is the form for a training loop; :func:`ratio_gradient` the pure function, which takes no step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from tgeokd.bilevel.estimators import finite_difference, forward, last_layer, unrolled
from tgeokd.bilevel.functional import Tensors, current_buffers, functional_logits, modes, trainable
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.bilevel.record import (
    Clip,
    Held,
    InnerStep,
    MicroBatch,
    PassContext,
    Pullback,
    functional_step,
    held_by,
    signal_difference_slope,
    slopes,
)
from tgeokd.core.compiling import compiled
from tgeokd.core.losses import check_ratios, fuse, gt_loss, kd_loss
from tgeokd.core.model_call import class_logits, module_device, random_state, replayed, sliced
from tgeokd.utils.errors import InputError

__all__ = ["Hypergradient", "Lookahead", "logits_along", "new_part", "ratio_gradient"]

Hypergradient = Literal["auto", "exact", "forward", "finite_difference", "last_layer", "unrolled"]

logger = logging.getLogger(__name__)


class Lookahead:
    """A training step that can say afterwards how its fusion ratios moved the held-out loss.

    Use it in place of ``student(inputs)`` and ``optimizer.step()``. No virtual step is taken: the real one is the lookahead.

    Args:
        student: the module being trained, on its device and in training mode.
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW`` (also inside a Lightning Fabric wrapper).
        temperature: ``tau`` of the teacher term.
        method: how to get the hypergradient. ``"forward"``: forward-mode AD, exact. ``"finite_difference"``: two more
            forward passes, exact to O(h^2). ``"last_layer"``: the classifier head's part alone, in closed form.
            ``"unrolled"``: through the step with a second-order graph, the slow reference. ``"exact"``: ``"forward"``, or
            ``"finite_difference"`` where the student has an operation without a forward-mode derivative. ``"auto"``:
            ``"last_layer"``, or ``"exact"`` where the student's logits do not come out of a trainable ``nn.Linear``. What
            was chosen is logged once.
        clip_norm: clip the gradient to this norm before the optimizer's step.
        assume_sgd: accept any other optimizer and treat its step as plain SGD's (an approximation).
        compile: compile the training pass (not the extra passes, which swap parameters and need forward-mode derivatives).

    Raises:
        ValueError: for an unknown method, an optimizer without a known derivative, or a student with nothing to train.

    Example:
        One step of a hand-written loop (``examples/handwritten_loop.py`` is the whole of it)::

            logits = lookahead.forward(inputs, target, teacher_logits)
            loss, alpha = tgeo.loss(Signals(logits, teacher_logits, target, temperature=4.0))
            optimizer.zero_grad()
            loss.mean().backward()
            lookahead.step()
            gradient = lookahead.ratio_gradient(val_inputs, val_target, alpha, direction=tgeo.direction)
            tgeo.learn(alpha, gradient)
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: Optimizer,
        *,
        temperature: float,
        method: Hypergradient = "auto",
        clip_norm: float | None = None,
        assume_sgd: bool = False,
        compile: bool = False,
    ) -> None:
        _check(method, temperature, clip_norm)
        _held(student, optimizer, assume_sgd=assume_sgd)
        self.student = student
        self.run: Callable[..., Any] = compiled(student) if compile else student  # the training pass
        self.optimizer = optimizer
        self.temperature = temperature
        self.clip_norm = clip_norm
        self.assume_sgd = assume_sgd
        self.method: Hypergradient = method
        self._head: nn.Linear | None = None
        self._parts: list[MicroBatch] = []
        self._step: InnerStep | None = None

    def forward(self, inputs: Any, target: Tensor, teacher_logits: Tensor, *, record: bool = True) -> Tensor:
        """Student logits of a training batch, or of one micro-batch of an accumulated step.

        Args:
            inputs: what the student takes; a mapping is passed as keywords, a tuple or list as positional arguments.
            target: class indices, shape (n,).
            teacher_logits: shape (n, C).
            record: keep what :meth:`ratio_gradient` will need. Switch it off on steps that will not ask.

        Returns:
            Shape (n, C), attached to the student's graph.
        """
        self._step = None
        if not record:
            return class_logits(self.run, inputs)
        part = new_part(self.student, self.method, inputs, target, teacher_logits, to_replay=self._head is None)
        if self._head is None and self.method in ("auto", "last_layer"):
            self.method, self._head = _with_head(self.student, self.optimizer, part, self.method)
        self._parts.append(part)
        return _run_part(part, self._head, lambda: class_logits(self.run, inputs))

    def forget(self) -> None:
        """Drop what a broken-off step left behind."""
        self._parts, self._step = [], None

    def step(self) -> None:
        """Clip the gradient (where asked) and take the optimizer's step, keeping what was there before it."""
        parts, self._parts = self._parts, []
        if not parts and self.clip_norm is None:
            self.optimizer.step()
            return
        own = trainable(self.student)
        clip = None
        if self.clip_norm is not None:
            clip = Clip(self.clip_norm, torch.nn.utils.clip_grad_norm_(list(own.values()), self.clip_norm))
        if not parts:
            self.optimizer.step()
            return
        moved = own
        if self._head is not None:
            # The head's part needs only the head's slopes and never runs the student at the parameters before the step.
            of_head = set(self._head.parameters())
            moved = {name: param for name, param in own.items() if param in of_head}
        gradients = {name: p.grad.detach() for name, p in moved.items() if p.grad is not None}
        held = held_by(self.optimizer, moved, assume_sgd=self.assume_sgd)
        pullback = Pullback(slopes(held, moved, gradients), clip)
        gradients = {name: g.clone() for name, g in gradients.items()}  # the loop may zero them before it asks
        if clip is not None:
            pullback.clipped_gradients = gradients
        before = {} if self._head is not None else {name: p.detach().clone() for name, p in own.items()}
        held = [h.snapshot() for h in held] if self.method == "unrolled" else []
        self.optimizer.step()
        torch.clear_autocast_cache()  # or a loop inside one autocast block would see the weights from before the step
        self._step = InnerStep(
            self.student, self.temperature, parts, before, None, pullback, held, head=self._head, gradient=gradients
        )

    def ratio_gradient(
        self,
        val_inputs: Any,
        val_target: Tensor,
        alpha: Tensor,
        *,
        inner_samples: int | None = None,
        direction: OuterDirection | None = None,
    ) -> Tensor:
        """``d L_val / d alpha_i`` of the step just taken.

        The student's parameters, gradients and buffers, the optimizer and the random state stay as they are.

        Args:
            val_inputs: held-out inputs.
            val_target: held-out labels, shape (M,). The held-out loss is the mean cross-entropy in eval mode.
            alpha: the fusion ratios the step used, shape (N,), micro-batches one after the other.
            inner_samples: find the derivative for about this many of the step's samples alone, the first of each
                micro-batch, multiplied by their share of all, and give the others 0. Where batches are shuffled this is an
                unbiased estimate of whatever is summed over the samples. For the ways that run the student again.
            direction: what stands for the held-out gradient, with its memory of earlier steps; by default that gradient
                itself. Not for ``"unrolled"``.

        Returns:
            Shape (N,).

        Raises:
            RuntimeError: where no recorded step has been taken.
            ValueError: where ``alpha`` has another length than the step, or for ``inner_samples`` with a student that ties
                the samples of a batch together.
        """
        if self._step is None:
            raise RuntimeError("ratio_gradient needs a finished step: forward(...), backward() and step() come first")
        result, self.method = _differentiate(
            self._step, self.method, alpha, val_inputs, val_target, inner_samples, direction
        )
        return result


def ratio_gradient(
    student: nn.Module,
    optimizer: Optimizer,
    *,
    inputs: Any,
    target: Tensor,
    teacher_logits: Tensor,
    alpha: Tensor,
    val_inputs: Any,
    val_target: Tensor,
    temperature: float,
    method: Hypergradient = "forward",
    clip_norm: float | None = None,
    accumulate: int = 1,
    assume_sgd: bool = False,
) -> Tensor:
    """``d L_val / d alpha_i`` after one optimizer step from here, without taking it.

    The step is the one that ``optimizer`` would take now, from its present state, on
    ``mean_i [alpha_i kd_i + (1 - alpha_i) gt_i]`` with the student in its present mode. The student (parameters, gradients,
    buffers, modes), the optimizer and the random state are bit for bit as before.

    Args:
        student: the module.
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW`` over (some of) its parameters.
        inputs: training inputs of N samples; a mapping is passed as keywords, a tuple or list as positional arguments.
        target: class indices, shape (N,).
        teacher_logits: shape (N, C).
        alpha: fusion ratios, shape (N,), in [0, 1].
        val_inputs: held-out inputs of M samples.
        val_target: held-out labels, shape (M,). The held-out loss is their mean cross-entropy, the student in eval mode.
        temperature: ``tau`` of the teacher term.
        method: see :class:`Lookahead`.
        clip_norm: the step clips the gradient to this norm.
        accumulate: the step runs its N samples in this many micro-batches of (nearly) equal size.
        assume_sgd: accept any other optimizer and treat its step as plain SGD's (an approximation).

    Returns:
        Shape (N,).

    Raises:
        ValueError: for an unknown method or optimizer, or an ``alpha`` of the wrong length or outside [0, 1].
        NotImplementedError: with ``method="forward"``, where the student has an operation without a forward-mode derivative.
    """
    _check(method, temperature, clip_norm)
    _check_alpha(alpha, len(target))
    check_ratios(alpha)
    held = _held(student, optimizer, assume_sgd=assume_sgd)
    own = trainable(student)
    values = {name: param.detach().requires_grad_() for name, param in own.items()}
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    parts: list[MicroBatch] = []
    losses: list[Tensor] = []
    head: nn.Linear | None = None
    with torch.enable_grad(), replayed(random_state(module_device(student))):
        for rows in _even_slices(len(target), accumulate):
            x = sliced(inputs, rows)
            part = new_part(student, method, x, target[rows], teacher_logits[rows], buffers)
            if head is None and method in ("auto", "last_layer"):
                method, head = _with_head(student, optimizer, part, method)
            logits = _run_part(part, head, lambda x=x: functional_logits(student, values, buffers, x))  # type: ignore[misc]
            kd, gt = kd_loss(logits, part.teacher_logits, temperature), gt_loss(logits, part.target)
            losses.append(fuse(kd, gt, alpha[rows].detach()))
            parts.append(part)
        found = torch.autograd.grad(torch.cat(losses).mean(), list(values.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(values, found, strict=True) if g is not None}
    clip = None
    if clip_norm is not None:
        clip = Clip(clip_norm, torch.nn.utils.get_total_norm(list(gradients.values())))
        gradients = {name: clip.coefficient * g for name, g in gradients.items()}
    with torch.no_grad():
        pullback = Pullback(slopes(held, values, gradients), clip, gradients)
        after = functional_step(held, {name: value.detach() for name, value in values.items()}, gradients)
    before = {name: value.detach() for name, value in values.items()}
    step = InnerStep(student, temperature, parts, before, after, pullback, held, buffers, head)
    return _differentiate(step, method, alpha, val_inputs, val_target)[0]


def _differentiate(
    step: InnerStep,
    method: Hypergradient,
    alpha: Tensor,
    val_inputs: Any,
    val_target: Tensor,
    inner_samples: int | None = None,
    outer: OuterDirection | None = None,
) -> tuple[Tensor, Hypergradient]:
    """The hypergradient, and the way it was found (which says what ``auto`` became)."""
    _check_alpha(alpha, step.size)
    parts = step.parts if inner_samples is None else _first_samples(step, method, inner_samples)
    if method == "last_layer":
        return last_layer.ratio_gradient(step, val_inputs, val_target, outer), method
    if method == "unrolled":
        if outer is not None:
            raise InputError(
                "hypergradient='unrolled' differentiates the held-out loss itself: average=0, fixed_length=False"
            )
        return unrolled.ratio_gradient(step, alpha, val_inputs, val_target), method

    direction = step.direction(step.outer_gradient(val_inputs, val_target), outer)
    moved, method = logits_along(step.student, parts, step.params, direction, method)
    along = [
        (signal_difference_slope(logits, part, step.temperature) * tangent).sum(dim=-1)
        for part, (logits, tangent) in zip(parts, moved, strict=True)
    ]
    if inner_samples is not None:
        # sum over the sample times N / n estimates the sum over all N
        share = sum(map(len, along)) / step.size
        along = [
            torch.cat([values / share, values.new_zeros(len(whole.target) - len(values))])
            for values, whole in zip(along, step.parts, strict=True)
        ]
    return -torch.cat(along) / step.size, method


def _first_samples(step: InnerStep, method: Hypergradient, count: int) -> list[MicroBatch]:
    """The step's micro-batches cut down to about ``count`` samples in all."""
    if count < 1:
        raise InputError(f"inner_samples must be >= 1, not {count}")
    if method in ("last_layer", "unrolled"):
        raise InputError(f"inner_samples is for the ways that run the student again, and {method!r} has no use for it")
    for module, training in step.parts[0].modes:
        # what a sample gives would depend on which others are with it, or on another dropout mask than the step's
        if training and isinstance(module, _BatchNorm | _DropoutNd):
            raise InputError(
                f"inner_samples cannot be used with a student that has {type(module).__name__} layers in training mode: "
                "there the derivative of a sample is that of its whole batch"
            )
    share = count / step.size
    return [part.first(math.ceil(share * len(part.target))) for part in step.parts]


def logits_along(
    student: nn.Module, parts: list[MicroBatch], params: Tensors, direction: Tensors, method: Hypergradient
) -> tuple[list[tuple[Tensor, Tensor]], Hypergradient]:
    """Logits and their derivative along a direction, and the way they were found (which says what ``auto`` became).

    Arguments and result as in :func:`tgeokd.bilevel.estimators.forward.logit_derivatives`.
    """
    if method == "finite_difference":
        return finite_difference.logit_derivatives(student, parts, params, direction), method
    try:
        result = forward.logit_derivatives(student, parts, params, direction)
    except NotImplementedError as error:
        reason = str(error).splitlines()[0]
        if method == "forward":
            raise NotImplementedError(
                f"the student has an operation that forward-mode AD does not cover ({reason}); "
                "use hypergradient 'finite_difference' or 'exact'"
            ) from error
        logger.warning("hypergradient: finite differences, because the student is beyond forward mode: %s", reason)
        return finite_difference.logit_derivatives(student, parts, params, direction), "finite_difference"
    if method == "exact":
        logger.info("hypergradient: forward mode, which covers every operation of the student")
    return result, "forward"


def _with_head(
    student: nn.Module, optimizer: Optimizer, part: MicroBatch, method: Hypergradient
) -> tuple[Hypergradient, nn.Linear | None]:
    """The student's classifier head, and the way that ``auto`` or ``last_layer`` comes to."""
    try:
        head = last_layer.find_head(student, part)
    except last_layer.NoHeadError as error:
        if method == "last_layer":
            raise
        logger.info("hypergradient: the exact one, because this student's %s", error.reason)
        return "exact", None
    if method == "auto":
        if not held_by(optimizer, {"weight": head.weight}, assume_sgd=True):
            logger.info("hypergradient: the exact one, because the optimizer does not hold the student's head")
            return "exact", None
        logger.info("hypergradient: the part of the classifier head, %s", head)
    return "last_layer", head


def new_part(
    student: nn.Module,
    method: Hypergradient,
    inputs: Any,
    target: Tensor,
    teacher_logits: Tensor,
    buffers: Tensors | None = None,
    *,
    to_replay: bool = True,
) -> MicroBatch:
    """A micro-batch as it stands before its forward pass; without ``to_replay``, it can never be run again."""
    device = module_device(student)
    kept: Tensors = {}
    if to_replay:
        kept = current_buffers(student) if buffers is None else {name: b.clone() for name, b in buffers.items()}
    return MicroBatch(
        inputs,
        target,
        teacher_logits,
        random_state(device),
        kept,
        modes(student) if to_replay else [],
        PassContext.current(device, math_attention=method not in ("finite_difference", "last_layer")),
    )


def _run_part(part: MicroBatch, head: nn.Linear | None, run: Callable[[], Tensor]) -> Tensor:
    """Run the forward pass of a micro-batch and complete its record."""
    with part.context():
        if head is None:
            logits = run()
        else:
            with last_layer.capture(head) as features:
                logits = run()
            (part.features,) = features
    part.student_logits = logits.detach()
    return logits


def _even_slices(total: int, pieces: int) -> list[slice]:
    """Cut ``range(total)`` into slices whose sizes differ by at most one."""
    if not 1 <= pieces <= total:
        raise InputError(f"accumulate must lie between 1 and the {total} samples of the step, not {pieces}")
    edges = [total * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _check_alpha(alpha: Tensor, size: int) -> None:
    if alpha.shape != (size,):
        raise InputError(f"alpha must have shape ({size},), one ratio a sample of the step, not {tuple(alpha.shape)}")


def _held(student: nn.Module, optimizer: Optimizer, *, assume_sgd: bool) -> list[Held]:
    """The student's parameters as the optimizer holds them, of which there must be some."""
    own = trainable(student)
    if not own:
        raise InputError("the student has no trainable parameter")
    held = held_by(optimizer, own, assume_sgd=assume_sgd)
    if not held:
        raise InputError("the optimizer holds none of the student's trainable parameters")
    return held


def _check(method: str, temperature: float, clip_norm: float | None) -> None:
    if method not in get_args(Hypergradient):
        raise InputError(f"hypergradient must be one of {', '.join(get_args(Hypergradient))}, not {method!r}")
    if not temperature > 0:
        raise InputError(f"temperature must be > 0, not {temperature}")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip_norm must be > 0, not {clip_norm}")
