"""What is measured in an epoch while the student trains."""

from typing import Any

import torch

from tgeokd.core.ratio_statistics import RatioStatistics
from tgeokd.methods.base import LossInputs, SampleLoss
from tgeokd.training.blame import blame
from tgeokd.training.finite_guard import FiniteGuard
from tgeokd.training.parallel import ParallelContext


class EpochStatistics:
    """Mean training loss and fusion ratios of the running epoch, gathered on the device without waiting for it."""

    def __init__(self, device: torch.device, parallel: ParallelContext) -> None:
        self._device, self._parallel = device, parallel
        self._guard = FiniteGuard(device)
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.ratios = RatioStatistics(self._device)
        self.count = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)

    def check_now(self) -> None:
        """Check every loss at once, also on an accelerator, which then waits in every step."""
        self._guard.immediate = True

    def update(self, result: SampleLoss, given: LossInputs, step: int, model_inputs: Any = None) -> None:
        """Add a microbatch of a step, given by its index.

        ``given`` is what the method was given; ``model_inputs`` are the student's, for messages.

        Raises:
            DivergenceError: where the student or the loss is not finite; on an accelerator some steps later.
            InputError: where the teacher is not.
        """
        total = result.loss.detach().sum()

        def explain() -> None:
            blame(model_inputs, given, result.loss, f"training loader, step {step}")

        self._guard.check(result.loss, total, given, step, explain)
        self._loss_sum += total
        self.count += len(given.target)
        if result.alpha is not None and given.teacher_logits is not None:
            self.ratios.add(result.alpha, given.student_logits, given.teacher_logits, given.target)

    def summary(self) -> dict[str, Any]:
        """``train_loss`` (mean over the samples) and what the ratios are like, None for methods without ratios.

        ``alpha_mean``, ``alpha`` by group, and ``alpha_saturated``, the larger share of ratios within 0.02 of 0 or of 1.
        """
        self._guard.read()
        counted = torch.tensor([float(self._loss_sum), self.count], dtype=torch.float64)
        loss_sum, count = self._parallel.all_reduce(counted).tolist()
        self.ratios.reduce(self._parallel.all_reduce)
        return {
            "train_loss": loss_sum / count,
            "alpha_mean": self.ratios.mean(),
            "alpha_saturated": self.ratios.saturated(),
            "alpha": self.ratios.summary(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far."""
        return {"loss_sum": self._loss_sum, "count": self.count, "ratios": self.ratios.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._loss_sum.copy_(state["loss_sum"])
        self.count = state["count"]
        self.ratios.load_state_dict(state["ratios"])
