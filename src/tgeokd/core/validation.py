"""Checks of what comes into training, each with one message that names what was given and what was expected."""

import math
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor

from tgeokd.utils.errors import InputError


def check_positive(name: str, value: float | None) -> None:
    """A finite number must be above 0; None stands for an option that is not used."""
    if value is not None and not (_is_number(value) and value > 0):
        raise InputError(f"{name} must be a number > 0, not {value!r}")


def check_at_least(minimum: float, **values: float | None) -> None:
    """Finite numbers, by name, must not be below a minimum; None stands for an option that is not used."""
    for name, value in values.items():
        if value is not None and not (_is_number(value) and value >= minimum):
            raise InputError(f"{name} must be a number >= {minimum}, not {value!r}")


def check_count(minimum: int, **values: int | None) -> None:
    """The same for whole numbers, which a bool is not."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, Integral) and not isinstance(value, bool) and value >= minimum):
            raise InputError(f"{name} must be a whole number >= {minimum}, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_type(**values: tuple[Any, Any]) -> None:
    """Values, by name, each with a type or a union that it must be of."""
    for name, (value, kind) in values.items():
        if not isinstance(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise InputError(f"{name} must be of type {wanted}, not {type(value).__name__}")


def check_logits(**tensors: Any) -> None:
    """Logits or probabilities, by name, must be floating-point tensors of one shape (N, C)."""
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
            given = (
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__
            )
            raise InputError(f"{name} must be a floating-point tensor of shape (N, C), not {given}")
        if first is not None and tensor.shape != first[1].shape:
            shapes = f"{tuple(tensor.shape)}, and {first[0]} {tuple(first[1].shape)}"
            raise InputError(f"{name} has shape {shapes}: they must agree")
        first = first or (name, tensor)


def check_target(target: Any, logits: Tensor, name: str = "target") -> None:
    """Labels must be class indices, int64, shape (N,), of logits (N, C). Their range is not read from an accelerator."""
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != logits.shape[:1]:
        given = (
            f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        )
        raise InputError(f"{name} must hold class indices, int64 of shape ({len(logits)},), not {given}")
    check_class_indices(target, logits.shape[-1], name)


def check_class_indices(target: Tensor, num_classes: int, name: str) -> None:
    """Integers must be class indices from 0 to C - 1."""
    if target.device.type != "cpu" or not target.numel():
        return
    lowest, highest = map(int, target.aminmax())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise InputError(f"{name} must hold class indices from 0 to {num_classes - 1}, not {wrong}")


def check_probs(**tensors: Tensor) -> None:
    """Rows, by name, must be distributions; not read from an accelerator."""
    for name, probs in tensors.items():
        if probs.device.type != "cpu" or not probs.numel():
            continue
        values = probs.detach()
        sums = values.sum(dim=-1)
        if not (float(values.min()) >= 0 and float((sums - 1).abs().max()) <= 1e-2):
            raise InputError(f"{name} must be probabilities, rows >= 0 that sum to 1. Are they logits?")


def check_choice(name: str, value: Any, literal: Any) -> None:
    """A value must be one of those of a ``Literal``."""
    if value not in get_args(literal):
        raise InputError(f"{name} must be one of {', '.join(get_args(literal))}, not {value!r}")


def validate_labels(target: Any, num_classes: int, where: str) -> None:
    """Labels must be a 1-D integer tensor with values from 0 to C - 1."""
    if not isinstance(target, Tensor) or target.ndim != 1:
        given = f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise InputError(f"labels of the {where} must be a tensor of shape (N,), not {given}")
    if target.dtype != torch.int64:
        raise InputError(f"labels of the {where} must be class indices of dtype int64, not {target.dtype}")
    lowest, highest = map(int, target.aminmax()) if len(target) else (0, 0)
    if lowest < 0 or highest >= num_classes:
        wrong = int(target[(target < 0) | (target >= num_classes)][0])
        raise InputError(f"labels of the {where} must be 0 to {num_classes - 1} ({num_classes} classes), not {wrong}")


def all_finite(values: Tensor) -> bool:
    """Whether all numbers of a tensor that is not empty are finite; on an accelerator this waits for them."""
    return all(math.isfinite(each) for each in values.aminmax())  # NaN where there is one; faster than torch.isfinite


def finite_rows(values: Tensor) -> Tensor:
    """Which rows of (N, C), C >= 1, hold finite numbers alone: bool, shape (N,)."""
    return torch.isfinite(values.amin(dim=1)) & torch.isfinite(values.amax(dim=1))  # NaN where there is one


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Student and teacher must have the same classes."""
    student, teacher = student_logits.shape[-1], teacher_logits.shape[-1]
    if student != teacher:
        raise InputError(f"the student has {student} classes but the teacher has {teacher}")


def check_same_length(student_logits: Tensor, target: Tensor) -> None:
    """The student must return one row of logits per label."""
    if len(student_logits) != len(target):
        raise InputError(f"the student returned logits of {len(student_logits)} samples for {len(target)} labels")


def check_validation_classes(train_counts: Tensor, validation_counts: Tensor) -> None:
    """Every class of the training set must occur in the validation set: nothing could be learned for it otherwise."""
    missing = listed_classes((train_counts > 0) & (validation_counts == 0))
    if missing:
        raise InputError(
            f"the validation set has no sample of class {missing}, which the training set has; split by class (stratified)"
        )


def listed_classes(chosen: Tensor) -> str:
    """The classes where a mask of shape (C,) is set, as text; the first of them where there are many."""
    classes = chosen.nonzero().flatten().tolist()
    return ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
