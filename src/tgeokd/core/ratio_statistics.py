"""The fusion ratios of an epoch, by whether the teacher is right and whether student and teacher agree."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tgeokd.core.losses import check_ratios
from tgeokd.core.softmax import softmax

GROUPS = ("teacher_right_agree", "teacher_right_disagree", "teacher_wrong_agree", "teacher_wrong_disagree")
BINS = 10
END = 0.02  # distance from 0 or 1 within which a ratio is saturated
FLUSH_AT = 4096  # samples
FLUSH_AT_LOGITS = 1 << 20  # entries of both logits


def agreement(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """Overlap of two predictions, ``sum_c min(S_c, T_c)``, shape (N,): 1 for equal, 0 for disjoint distributions."""
    return torch.minimum(student_probs, teacher_probs).sum(dim=-1)


class RatioStatistics:
    """Counts, means and histograms of alpha by group, gathered on the batches' device without a host synchronisation.

    The four groups of :data:`GROUPS` cross "no class is more probable to the teacher than the label" with "student and teacher
    overlap by at least one half" (:func:`agreement`).
    """

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(len(GROUPS) * BINS, dtype=torch.int64, device=device)
        self._sums = torch.zeros(len(GROUPS), dtype=torch.float64, device=device)
        self._ends = torch.zeros(2, dtype=torch.int64, device=device)  # ratios within END of 0 and of 1
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._pending_samples = 0

    def add(self, alpha: Tensor, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
        """Add a batch: alpha (N,), logits (N, C), target (N,). An InputError for a ratio outside [0, 1] may come later."""
        # Small batches are put together first: a dozen small operations a step would cost more than a small student's step.
        self._pending.append((alpha.detach(), student_logits.detach(), teacher_logits, target))
        self._pending_samples += len(target)
        if self._pending_samples >= FLUSH_AT or self._pending_samples * student_logits.shape[-1] * 2 >= FLUSH_AT_LOGITS:
            self._flush()

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Sum the counts and means over processes."""
        self._flush()
        self._counts, self._sums, self._ends = map(all_reduce, (self._counts, self._sums, self._ends))

    def state_dict(self) -> dict[str, Tensor]:
        """Counts and sums so far."""
        self._flush()
        return {"counts": self._counts.clone(), "sums": self._sums.clone(), "ends": self._ends.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._counts.copy_(state["counts"])
        self._sums.copy_(state["sums"])
        self._ends.copy_(state["ends"])

    def _flush(self) -> None:
        if not self._pending:
            return
        pending, self._pending, self._pending_samples = self._pending, [], 0
        alpha, student, teacher, target = (
            pending[0] if len(pending) == 1 else map(torch.cat, zip(*pending, strict=True))
        )
        if alpha.device.type == "cpu":  # elsewhere the reading would wait for the device
            check_ratios(alpha)
        agree = agreement(softmax(student), softmax(teacher)) >= 0.5
        right = teacher.gather(-1, target.unsqueeze(-1)).squeeze(-1) == teacher.amax(dim=-1)
        group = 2 * (~right).long() + (~agree).long()
        bin_ = (alpha * BINS).long().clamp(0, BINS - 1)
        # index_add_ rather than bincount: on an accelerator the latter waits for the host
        self._counts.index_add_(0, group * BINS + bin_, torch.ones_like(group))
        self._sums.index_add_(0, group, alpha.double())
        self._ends += torch.stack([(alpha <= END).sum(), (alpha >= 1 - END).sum()])

    def summary(self) -> dict[str, Any] | None:
        """By group ``count``, ``mean`` (None if empty) and ``histogram`` (10 equal bins of [0, 1]); None without data."""
        self._flush()
        histograms = self._counts.view(len(GROUPS), BINS).tolist()
        sums = self._sums.tolist()
        if not any(map(sum, histograms)):
            return None
        return {
            name: {"count": sum(h), "mean": total / sum(h) if sum(h) else None, "histogram": h}
            for name, h, total in zip(GROUPS, histograms, sums, strict=True)
        }

    def saturated(self) -> float | None:
        """The larger share of ratios at one end, within :data:`END` of 0 or of 1."""
        self._flush()
        count = int(self._counts.sum())
        return int(self._ends.max()) / count if count else None

    def disagreement(self) -> float:
        """Share of samples for which a class is more probable to the teacher than the label."""
        self._flush()
        by_group = self._counts.view(len(GROUPS), BINS).sum(dim=1)
        return float(by_group[2:].sum() / by_group.sum().clamp_min(1))

    def mean(self) -> float | None:
        """Mean over all samples."""
        self._flush()
        count = int(self._counts.sum())
        return float(self._sums.sum()) / count if count else None
