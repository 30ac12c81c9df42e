"""What a metric keeps of the samples it has seen: numbers by class, or one per sample, never the logits (N, C)."""

import math

import torch
from torch import Tensor

Value = float | dict[int, float]


class Accumulator:
    """Takes the samples of a set batch by batch, on the device of the logits; :meth:`update` reads nothing back from it."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            logits: shape (n, C), of any floating-point type. Where they are not finite the value does not matter, but there
                must be no error.
            target: class indices from 0 to C - 1, int64, shape (n,), on the same device.
        """
        raise NotImplementedError

    def compute(self) -> Value:
        """The value for all samples so far, N >= 1; of a metric per class, one value by class index."""
        raise NotImplementedError


class ExactSum:
    """A float64 sum of non-negative sums whose result does not depend on how the summands were cut (Knuth's TwoSum)."""

    def __init__(self) -> None:
        self._high: Tensor | float = 0.0
        self._low: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        """Add a float64 scalar."""
        high = self._high + value
        added = high - self._high
        self._low = self._low + ((self._high - (high - added)) + (value - added))
        self._high = high

    def __float__(self) -> float:
        high = float(self._high)
        return high + float(self._low) if math.isfinite(high) else high


class ClassCounts:
    """Counts by class, int64, shape (C,): of the labels, of the predictions, and of the samples where both agree."""

    def __init__(self, num_classes: int) -> None:
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits (n, C) and labels (n,)."""
        predicted = logits.argmax(dim=1)
        self._counts = self._counts.to(logits.device, non_blocking=True)
        ones = torch.ones_like(target)
        for counts, classes, values in zip(
            self._counts, (target, predicted, target), (ones, ones, (predicted == target).long()), strict=True
        ):
            counts.index_add_(0, classes, values)

    def present(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """The classes that occur in the labels, and their counts of labels, predictions and hits, float64, on the CPU."""
        labels, predicted, hits = self._counts.cpu()
        classes = labels.nonzero().flatten()
        return classes.tolist(), *(counts[classes].double() for counts in (labels, predicted, hits))
