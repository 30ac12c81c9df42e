"""Stopping at the first logits or loss that are not finite."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tgeokd.training.blame import ADVICE
from tgeokd.utils.errors import DivergenceError, InputError


class FiniteGuard:
    """Stops training at the first NaN or infinite logit or loss.

    On the CPU the check is immediate, and the sample is named. On an accelerator reading a flag would stall every step, so the
    first bad step is noted on the device, read at intervals, and named with the model.

    Args:
        device: of the logits.
        interval: steps between two reads on an accelerator.
    """

    def __init__(self, device: torch.device, interval: int = 50) -> None:
        self.immediate = device.type == "cpu"
        self._interval = interval
        self._device = device
        self._first_bad: dict[str, Tensor] = {}

    def check(
        self,
        loss: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        step: int,
        explain: Callable[[], None],
    ) -> None:
        """Check a microbatch of a step: the sum of its losses and the logits it came from.

        ``explain`` is called on the CPU for a loss that is not finite and raises an error that says why.
        """
        if self.immediate:
            if not math.isfinite(loss):  # bad logits make a bad loss, and one number is cheaper to read
                explain()
            return
        if teacher_logits is not None:
            self._note("teacher", teacher_logits, step)
        self._note("student", student_logits, step)

    def read(self) -> None:
        """Read what was noted on the device."""
        noted = [(int(first), model != "teacher", model) for model, first in self._first_bad.items() if int(first) >= 0]
        if noted:
            step, _, model = min(noted)
            self._stop(model, step)

    def _note(self, model: str, logits: Tensor, step: int) -> None:
        finite = torch.isfinite(logits.detach()).all()
        never = torch.full((), -1, device=self._device)  # torch.tensor would wait for its copy
        first = self._first_bad.get(model, never)
        self._first_bad[model] = torch.where((first < 0) & ~finite, step, first)
        if step % self._interval == self._interval - 1:
            self.read()

    @staticmethod
    def _stop(model: str, step: int) -> None:
        message = f"the {model}'s logits are NaN or infinite in step {step}"
        # One bad input makes the logits of both bad. Which sample it is would have to be read in every step.
        if model == "teacher":
            raise InputError(f"{message}: the inputs may be; accelerator='cpu' names the sample")
        raise DivergenceError(f"{message}; {ADVICE}")
