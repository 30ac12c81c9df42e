"""`accuracy`: share of samples whose largest logit is the one of the label."""

import torch
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("accuracy")
class Accuracy(Metric):
    """Share of samples whose largest logit is the one of the label, in [0, 1]."""

    title, factor, digits = "accuracy, %", 100, 2

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """Counts the samples."""
        return _Accuracy()


class _Accuracy(Accumulator):
    def __init__(self) -> None:
        self._samples, self._right = 0, torch.zeros((), dtype=torch.int64)

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._samples += len(target)
        self._right = self._right.to(target.device, non_blocking=True) + (logits.argmax(dim=1) == target).sum()

    def compute(self) -> float:
        return int(self._right) / self._samples
