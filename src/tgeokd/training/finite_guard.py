"""Stopping at the first logits or loss that are not finite."""

import math

import torch
from torch import Tensor

from tgeokd.utils.errors import DivergenceError, InputError


class FiniteGuard:
    """Stops training at the first NaN or infinite logit and names the model and the step.

    On the CPU the check is immediate. On an accelerator reading a flag would stall every step, so the first bad step is noted
    on the device and read at intervals.

    Args:
        device: of the logits.
        interval: steps between two reads on an accelerator.
    """

    def __init__(self, device: torch.device, interval: int = 50) -> None:
        self._immediate = device.type == "cpu"
        self._interval = interval
        self._device = device
        self._first_bad: dict[str, Tensor] = {}

    def check(self, loss: Tensor, student_logits: Tensor, teacher_logits: Tensor | None, step: int) -> None:
        """Check a microbatch of a step: the sum of its losses and the logits it came from."""
        if self._immediate and math.isfinite(loss):  # bad logits make a bad loss, and one number is cheaper to read
            return
        if teacher_logits is not None:
            self._check_logits("teacher", teacher_logits, step)
        self._check_logits("student", student_logits, step)
        if self._immediate:
            raise DivergenceError(f"the loss is NaN or infinite in step {step}, and the logits are not")

    def read(self) -> None:
        """Read what was noted on the device."""
        noted = [(int(first), model != "teacher", model) for model, first in self._first_bad.items() if int(first) >= 0]
        if noted:
            step, _, model = min(noted)
            self._stop(model, step)

    def _check_logits(self, model: str, logits: Tensor, step: int) -> None:
        logits = logits.detach()
        if self._immediate:
            if not bool(torch.isfinite(logits).all()):
                self._stop(model, step)
            return
        finite = torch.isfinite(logits).all()
        never = torch.full((), -1, device=self._device)  # torch.tensor would wait for its copy
        first = self._first_bad.get(model, never)
        self._first_bad[model] = torch.where((first < 0) & ~finite, step, first)
        if step % self._interval == self._interval - 1:
            self.read()

    @staticmethod
    def _stop(model: str, step: int) -> None:
        if model == "teacher":
            raise InputError(f"the teacher's logits are NaN or infinite in step {step}")
        raise DivergenceError(
            f"the student's logits are NaN or infinite in step {step}; a lower learning rate or clip_norm may help"
        )
