"""The hypergradient of the fusion ratios as a pure function, which takes no step.

    d L_val / d alpha_i = -(1/N) < J^T v , grad_theta (kd_i - gt_i) >  at theta,      v = grad L_val(theta')

where ``J`` is the Jacobian of the step's update with respect to the gradient (``D`` for an unclipped step). For all ``i`` this
is one derivative of the N-vector ``kd_i - gt_i`` along ``J^T v``: no second-order graph.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.estimators.base import Estimator, build_estimator
from tgeokd.bilevel.functional import functional_logits, trainable
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.bilevel.recorder import recorded_pass
from tgeokd.bilevel.step_vjp import Clip, StepVJP, functional_step, step_diagonal, student_slots
from tgeokd.bilevel.terms import FusedTerms
from tgeokd.core.losses import check_ratios
from tgeokd.core.model_call import module_device, random_state, replayed, sliced
from tgeokd.core.validation import check_class_indices, check_logits, check_positive, check_target
from tgeokd.utils.errors import InputError


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
    method: str | Estimator = "forward",
    clip_norm: float | None = None,
    accumulate: int = 1,
    assume_sgd: bool = False,
) -> Tensor:
    """``d L_val / d alpha_i`` after one optimizer step from here, without taking it.

    The step is the one that ``optimizer`` would take now, from its present state, on
    ``mean_i [alpha_i kd_i + (1 - alpha_i) gt_i]`` with the student in its present mode. The student (parameters, gradients,
    buffers, modes), the optimizer and the random state stay as they are, bit for bit.

    Args:
        student: the module.
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW`` over (some of) its parameters.
        inputs: training inputs of N samples; a mapping is passed as keywords, a tuple or list as positional arguments.
        target: class indices, shape (N,).
        teacher_logits: shape (N, C).
        alpha: fusion ratios, shape (N,), in [0, 1].
        val_inputs: validation inputs of M samples.
        val_target: their labels, shape (M,). The validation loss is the mean cross-entropy, the student in eval mode.
        temperature: ``tau`` of the teacher term.
        method: an estimator or its name: ``"forward"``, ``"finite_difference"``, ``"exact"`` (one of these two),
            ``"last_layer"``, ``"auto"`` (``last_layer``, or ``exact``) or ``"unrolled"``.
        clip_norm: the step clips the gradient to this norm.
        accumulate: the step runs its N samples in this many microbatches of (nearly) equal size.
        assume_sgd: accept any other optimizer and treat its step as plain SGD's (an approximation).

    Returns:
        Shape (N,).

    Raises:
        InputError: for other types, shapes or ranges than these.
        NotImplementedError: with ``method="forward"``, where the student has an operation without a forward-mode derivative.
    """
    estimator = build_estimator(method)
    check_positive("temperature", temperature)
    check_positive("clip_norm", clip_norm)
    check_logits(teacher_logits=teacher_logits)
    if not len(target) or not len(val_target):
        raise InputError(
            f"{len(target)} training and {len(val_target)} validation samples: at least one of each is needed"
        )
    if alpha.shape != (len(target),):
        raise InputError(f"alpha must have shape ({len(target)},), one ratio per sample, not {tuple(alpha.shape)}")
    check_ratios(alpha)
    slots = student_slots(student, optimizer, assume_sgd=assume_sgd)
    values = {name: param.detach().requires_grad_() for name, param in trainable(student).items()}
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    microbatches: list[MicroBatch] = []
    losses: list[Tensor] = []
    slices = _even_slices(len(target), accumulate)
    with torch.enable_grad(), replayed(random_state(module_device(student))):
        state = MicroBatch.begin(student, sliced(inputs, slices[0]), buffers=buffers)
        estimator = estimator.resolve(student, optimizer, state)
        for rows in slices:
            with recorded_pass(estimator, student, sliced(inputs, rows), buffers) as microbatch:
                logits = functional_logits(student, values, buffers, sliced(inputs, rows))
            check_logits(student_logits=logits, teacher_logits=teacher_logits[rows])
            check_target(target[rows], logits)
            check_class_indices(val_target, logits.shape[-1], "val_target")
            terms = FusedTerms(teacher_logits[rows], target[rows], temperature)
            microbatch.student_logits, microbatch.loss_terms = logits.detach(), terms
            losses.append(terms.loss(logits, alpha[rows].detach()))
            microbatches.append(microbatch)
        found = torch.autograd.grad(torch.cat(losses).mean(), list(values.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(values, found, strict=True) if g is not None}
    before = {name: value.detach() for name, value in values.items()}
    clip = None
    if clip_norm is not None:
        clip = Clip(clip_norm, torch.nn.utils.get_total_norm(list(gradients.values())))
        gradients = {name: clip.coefficient * g for name, g in gradients.items()}
    with torch.no_grad():
        vjp = StepVJP(step_diagonal(slots, values, gradients), clip, gradients)
        after = functional_step(slots, before, gradients)
    record = StepRecord(student, microbatches, before, after, vjp, gradients, slots, alpha, buffers)
    return estimator.estimate(record, (val_inputs, val_target))


def _even_slices(total: int, pieces: int) -> list[slice]:
    """Slices of ``range(total)`` with sizes that differ by at most one."""
    if not 1 <= pieces <= total:
        raise InputError(f"accumulate must lie between 1 and the {total} samples of the step, not {pieces}")
    edges = [total * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
