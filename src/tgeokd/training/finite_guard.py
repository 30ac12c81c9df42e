"""Stopping at the first loss that is not finite."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tgeokd.methods.base import LossInputs
from tgeokd.training.blame import ADVICE, not_finite, sample_name
from tgeokd.utils.errors import DivergenceError


class FiniteGuard:
    """Stops training at the first NaN or infinite loss; logits that are not finite make one.

    On the CPU the check is immediate. On an accelerator reading a flag would stall every step, so the first bad step, its
    first bad sample and whose logits are bad are noted on the device, and read at intervals.

    Args:
        device: of the losses.
        interval: steps between two reads on an accelerator.
    """

    def __init__(self, device: torch.device, interval: int = 50) -> None:
        self.immediate = device.type == "cpu"
        self._interval = interval
        # step, row, sample id or -1, whether the teacher's and the student's logits are finite
        self._first = torch.tensor([-1, 0, -1, 1, 1], device=device)

    def check(self, losses: Tensor, total: Tensor, given: LossInputs, step: int, explain: Callable[[], None]) -> None:
        """Check the losses (N,) of a microbatch of a step, and their sum, shape ().

        ``explain`` is called on the CPU for a sum that is not finite and raises an error that says why.
        """
        if self.immediate:
            if not math.isfinite(total):  # one number is cheaper to read
                explain()
            return
        self._note(losses.detach(), given, step)
        if step % self._interval == self._interval - 1:
            self.read()

    def read(self) -> None:
        """Read what was noted on the device, and raise the error for it."""
        step, row, sample, teacher, student = self._first.tolist()
        if step < 0:
            return
        where = f"training loader, step {step}"
        who = sample_name(row, None if sample < 0 else sample)
        for side, finite in (("teacher", teacher), ("student", student)):
            if not finite:
                raise not_finite(side, who, where)
        raise DivergenceError(f"the loss of {who} is NaN or infinite, and the logits are not ({where}); {ADVICE}")

    def _note(self, losses: Tensor, given: LossInputs, step: int) -> None:
        finite, row = torch.isfinite(losses).min(dim=0, keepdim=True)

        def good(logits: Tensor | None) -> Tensor:
            if logits is None:
                return torch.ones_like(row)
            return torch.isfinite(logits.detach().index_select(0, row)).all().long().view(1)

        if given.ids is None:
            sample = torch.full_like(row, -1)
        else:
            sample = given.ids.to(row.device, torch.int64, non_blocking=True).index_select(0, row)
        noted = torch.cat(
            [torch.full_like(row, step), row, sample, good(given.teacher_logits), good(given.student_logits)]
        )
        self._first = torch.where((self._first[0] < 0) & ~finite, noted, self._first)
