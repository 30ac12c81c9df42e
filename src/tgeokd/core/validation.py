"""Checks of what comes into training, each with one message that names what was given and what was expected."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tgeokd.utils.errors import InputError

__all__ = ["FiniteGuard", "check_classes_held_out", "check_same_classes", "check_target"]


def check_target(target: Any, num_classes: int, where: str) -> None:
    """Labels must be a 1-D integer tensor with values from 0 to C - 1."""
    if not isinstance(target, Tensor) or target.ndim != 1:
        given = f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise InputError(f"labels of the {where} must be a tensor of shape (N,), not {given}")
    if target.dtype != torch.int64:
        raise InputError(f"labels of the {where} must be class indices of dtype int64, not {target.dtype}")
    if not len(target):
        return
    lowest, highest = map(int, target.aminmax())
    if lowest < 0 or highest >= num_classes:
        wrong = target[(target < 0) | (target >= num_classes)][0]
        raise InputError(f"target of the {where} has label {int(wrong)} but the student has {num_classes} classes")


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Student and teacher must speak of the same classes."""
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise InputError(
            f"the student has {student_logits.shape[-1]} classes but the teacher has {teacher_logits.shape[-1]}"
        )


def check_classes_held_out(train_counts: Tensor, held_out_counts: Tensor) -> None:
    """Every class of the training set must occur in the held-out set: nothing could be learned for it there."""
    missing = ((train_counts > 0) & (held_out_counts == 0)).nonzero().flatten().tolist()
    if missing:
        names = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        raise InputError(
            f"the held-out set has no sample of class {names}, which the training set has; split by class (stratified)"
        )


class FiniteGuard:
    """Stops training at the first NaN or infinite logit and says whose it was and in which step.

    On the CPU the check is immediate. On an accelerator reading a flag would stall every step, so the first bad step is noted
    on the device and read at intervals.

    Args:
        device: where the logits are.
        interval: steps between two reads on an accelerator.
    """

    def __init__(self, device: torch.device, interval: int = 50) -> None:
        self._immediate = device.type == "cpu"
        self._interval = interval
        self._device = device
        self._first_bad: dict[str, Tensor] = {}

    def see_step(self, loss: Tensor, student_logits: Tensor, teacher_logits: Tensor | None, step: int) -> None:
        """Check a micro-batch of a step: the sum of its losses and the logits that it came from."""
        if self._immediate and math.isfinite(loss):  # bad logits make a bad loss, and one number is cheaper to look at
            return
        if teacher_logits is not None:
            self.see("teacher", teacher_logits, step)
        self.see("student", student_logits, step)
        if self._immediate:
            raise InputError(f"the loss is NaN or infinite in step {step}, and the logits are not")

    def see(self, whose: str, logits: Tensor, step: int) -> None:
        """Check logits of a step."""
        logits = logits.detach()
        if self._immediate:
            if not bool(torch.isfinite(logits).all()):
                self._stop(whose, step)
            return
        finite = torch.isfinite(logits).all()
        never = torch.full((), -1, device=self._device)  # not torch.tensor, whose copy would be waited for
        first = self._first_bad.get(whose, never)
        self._first_bad[whose] = torch.where((first < 0) & ~finite, step, first)
        if step % self._interval == self._interval - 1:
            self.read()

    def read(self) -> None:
        """Read what was noted on the device."""
        noted = [(int(first), whose != "teacher", whose) for whose, first in self._first_bad.items() if int(first) >= 0]
        if noted:
            step, _, whose = min(noted)
            self._stop(whose, step)

    @staticmethod
    def _stop(whose: str, step: int) -> None:
        hint = "; a lower learning rate or clip_norm may help" if whose == "student" else ""
        raise InputError(f"the {whose}'s logits are NaN or infinite in step {step}{hint}")
