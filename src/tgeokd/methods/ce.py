"""`ce`: plain training on the labels."""

from __future__ import annotations

from typing import ClassVar

from tgeokd.methods.base import Method, SampleLoss, Signals

__all__ = ["CrossEntropy"]


class CrossEntropy(Method):
    """Plain training: cross-entropy with the label, the teacher ignored (alpha = 0)."""

    name: ClassVar[str] = "ce"
    needs_teacher = False

    def loss(self, signals: Signals) -> SampleLoss:
        """``gt_i``."""
        return SampleLoss(signals.gt, None)
