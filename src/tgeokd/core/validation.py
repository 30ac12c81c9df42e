"""Checks of what comes into training, each with one message that names what was given and what was expected."""

from typing import Any, get_args

import torch
from torch import Tensor

from tgeokd.utils.errors import InputError


def check_positive(name: str, value: float | None) -> None:
    """A number must be above 0; None stands for an option that is not used."""
    if value is not None and not value > 0:
        raise InputError(f"{name} must be > 0, not {value}")


def check_at_least(minimum: float, **values: float | None) -> None:
    """Numbers, by name, must not be below a minimum; None stands for an option that is not used."""
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise InputError(f"{name} must be >= {minimum}, not {value}")


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


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Student and teacher must have the same classes."""
    student, teacher = student_logits.shape[-1], teacher_logits.shape[-1]
    if student != teacher:
        raise InputError(f"the student has {student} classes but the teacher has {teacher}")


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
