"""Per-sample distillation losses and their fusion.

Pure functions of logits. Every loss returns one value per sample, shape ``(N,)``; nothing is averaged here, so a caller
can weigh samples before reducing. Below, ``z_s`` and ``z_t`` are student and teacher logits, ``tau`` > 0 the temperature;
``target`` holds class indices, int64, shape (N,).

Logits and probabilities cannot be told apart by looking at them. Every ``*_logits`` argument must hold logits, shape (N, C);
turn a teacher's probabilities into logits with :func:`logits_from_probs`.
"""

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.softmax import log_softmax, softmax
from tgeokd.core.validation import check_logits, check_positive, check_target
from tgeokd.utils.errors import InputError


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Distillation loss of each sample, ``tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))``.

    The factor ``tau^2`` keeps the gradient with respect to the logits at the same scale for every temperature.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C); logits, not probabilities.
        temperature: ``tau`` > 0.

    Returns:
        Shape (N,), in nats; 0 exactly where the two distributions agree.

    Raises:
        InputError: for a temperature that is not positive or for shapes that differ.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    log_s, log_t = (log_softmax(z) for z in _softened(student_logits, teacher_logits, temperature))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=-1)


def decoupled_kd(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    r"""The two parts of a sample's distillation loss: about the label's class, and about the other classes.

    ``TCKD = tau^2 KL`` of the pairs (label, all the rest), ``NCKD = tau^2 KL`` of the distributions over the other classes
    alone, both of the softened teacher from the softened student. They make up the usual loss:
    ``kd_loss = TCKD + (1 - p_t[y]) NCKD`` with the teacher's softened probability of the label ``p_t[y]``.

    Returns:
        ``(TCKD, NCKD)``, each of shape (N,); NCKD is 0 where C = 2.

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_target(target, student_logits)
    # The other classes' columns: those below the label's as they are, those from it on moved up by one.
    below = torch.arange(student_logits.shape[-1] - 1, device=target.device)
    others = below + (below >= target.unsqueeze(-1))
    pairs, rests = [], []
    for softened in _softened(student_logits, teacher_logits, temperature):
        rest = softened.gather(-1, others)
        label = softened.gather(-1, target.unsqueeze(-1))
        pairs.append(torch.cat([label, rest.logsumexp(dim=-1, keepdim=True)], dim=-1))
        rests.append(rest)
    scale = temperature**2
    return scale * kd_loss(pairs[0], pairs[1], 1.0), scale * kd_loss(rests[0], rests[1], 1.0)


def standardise(logits: Tensor) -> Tensor:
    """Logits of each sample moved to mean 0 and scaled to standard deviation 1 over the classes.

    Returns:
        ``(z - mean) / (1e-7 + std)`` with the unbiased deviation, shape (N, C), C >= 2; zeros where all logits are equal.

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1.
    """
    check_logits(logits=logits)
    if logits.shape[-1] < 2:
        raise InputError("logits of one class have no deviation: standardise needs C >= 2")
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (1e-7 + logits.std(dim=-1, keepdim=True))


def soft_ce_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the softened student under the softened teacher, without the factor ``tau^2``, shape (N,).

    ``tau^2`` times this is :func:`kd_loss` plus ``tau^2`` times the teacher's entropy: the same gradient, another value.
    """
    log_s, log_t = (log_softmax(z) for z in _softened(student_logits, teacher_logits, temperature))
    return -(log_t.exp() * log_s).sum(dim=-1)


def gt_loss(student_logits: Tensor, target: Tensor, *, check: bool = True) -> Tensor:
    """Cross-entropy of each sample with its label, shape (N,), in nats.

    Args:
        student_logits: shape (N, C).
        target: class indices, int64, shape (N,).
        check: look whether they are; False where they have been checked as they were read.

    Raises:
        InputError: for another type or shape, and labels outside 0 to C - 1: -100 is no label here.
    """
    if check:
        check_logits(student_logits=student_logits)
        check_target(target, student_logits)
    return F.nll_loss(log_softmax(student_logits), target, reduction="none")


def kd_grad(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Derivative of :func:`kd_loss` by the student logits, ``tau (softmax(z_s / tau) - softmax(z_t / tau))``, shape (N, C)."""
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return temperature * (softmax(student) - softmax(teacher))


def gt_grad(student_logits: Tensor, target: Tensor, *, check: bool = True) -> Tensor:
    """Derivative of :func:`gt_loss` by the student's logits, ``softmax(z_s)`` minus the one-hot label, shape (N, C)."""
    if check:
        check_logits(student_logits=student_logits)
        check_target(target, student_logits)
    probs = softmax(student_logits)
    return probs.scatter_add(-1, target.unsqueeze(-1), torch.full_like(probs[:, :1], -1.0))


def regression_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference between student and teacher logits of each sample, shape (N,)."""
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    return (student_logits - teacher_logits).square().mean(dim=-1)


def fuse(kd: Tensor, gt: Tensor, alpha: Tensor | float, *, check: bool = True) -> Tensor:
    """The fused loss of each sample, ``alpha kd + (1 - alpha) gt``, shape (N,), in the type of ``gt``.

    Args:
        kd: teacher term, shape (N,).
        gt: label term, shape (N,).
        alpha: weight of the **teacher** term, in [0, 1]: one number, or shape (N,).
        check: look whether it lies there, unless it is on an accelerator, where this would stall the step.

    Raises:
        InputError: for other shapes, or a ratio outside [0, 1].
    """
    if kd.shape != gt.shape or (isinstance(alpha, Tensor) and alpha.ndim and alpha.shape != gt.shape):
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else "a number" for value in (kd, gt, alpha)]
        raise InputError(
            f"kd, gt and alpha must have one value per sample, not shapes {shapes[0]}, {shapes[1]}, {shapes[2]}"
        )
    if check and (not isinstance(alpha, Tensor) or alpha.device.type == "cpu"):
        check_ratios(alpha)
    # gt + alpha (kd - gt) in one operation, exact at 0 and at 1
    return torch.lerp(gt, kd.to(gt.dtype), alpha.to(gt.dtype) if isinstance(alpha, Tensor) else alpha)


def check_ratios(alpha: Tensor | float) -> None:
    """Raise an InputError unless every fusion ratio lies in [0, 1]."""
    if isinstance(alpha, Tensor):
        if not alpha.numel():
            return
        low, high = map(float, alpha.detach().aminmax())
    else:
        if not isinstance(alpha, Real):
            raise InputError(f"alpha must be a number or a tensor, not {alpha!r}")
        low = high = alpha
    if not (low >= 0 and high <= 1):
        given = f"not {low:.4g}" if low == high else f"but spans {low:.4g} to {high:.4g}"
        raise InputError(f"alpha must lie in [0, 1], {given}")


def logits_from_probs(probs: Tensor) -> Tensor:
    """Logits of class probabilities (N, C): ``log(probs)``, with zeros raised to the smallest positive normal number.

    Raises:
        InputError: where a row is not a distribution (a negative or non-finite entry, or a sum away from 1).
    """
    check_logits(probs=probs)
    wrong = (probs < 0).any(dim=-1) | ((probs.sum(dim=-1) - 1).abs() > 1e-2) | ~probs.isfinite().all(dim=-1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"teacher probabilities must be >= 0 and sum to 1; row {row} sums to {float(probs[row].sum()):.4g} "
            f"with minimum {float(probs[row].min()):.4g}. Are they logits?"
        )
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def to_class_logits(outputs: Tensor) -> Tensor:
    """Logits (N, C) from a model's outputs, shape (N, C), (N, 1) or (N,); one logit ``z`` a sample becomes ``(0, z)``.

    Raises:
        InputError: for any other shape.
    """
    if outputs.ndim == 1:
        outputs = outputs.unsqueeze(-1)
    if outputs.ndim != 2:
        raise InputError(f"logits must have shape (N, C), (N, 1) or (N,), not {tuple(outputs.shape)}")
    return F.pad(outputs, (1, 0)) if outputs.shape[-1] == 1 else outputs


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_positive("temperature", temperature)
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    return student_logits / temperature, teacher_logits / temperature
