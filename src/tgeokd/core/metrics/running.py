"""Metrics of a set that is read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.validation import finite_rows, validate_labels
from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.core.metrics.base import Metrics

CHUNK = 2**17  # logits that are converted to float64 at a time on the CPU: what fits its cache
DEVICE_CHUNK = 2**24  # on an accelerator
NONE = torch.iinfo(torch.int64).max


class MetricsAccumulator:
    """Metrics of a set that is given batch by batch.

    Memory is in proportion to the classes, and for metrics that rank samples to the samples; see :class:`RocAreas` for the
    areas under ROC curves. A metric that only has :meth:`Metric.compute` keeps all logits.

    Attributes:
        samples: N so far.

    Example:
        >>> running = Metrics(("accuracy", "nll")).accumulator()
        >>> for logits, target in batches:                                       # doctest: +SKIP
        ...     running.update(logits, target)
        >>> running.compute()                                                    # doctest: +SKIP
        {'accuracy': 0.93, 'nll': 0.21}
    """

    def __init__(self, metrics: Metrics) -> None:
        self.samples = 0
        self._added = 0  # of them, those that are not pending
        self._metrics, self._num_classes = metrics, 0
        self._accumulators: dict[str, Accumulator] = {}
        self._pending: list[tuple[Tensor, Tensor]] = []  # small batches, which are added together
        self._pending_size = 0
        # What compute() reads back, on the device: it says what was wrong, as update() waits for nothing.
        self._labels = torch.empty(0, dtype=torch.int64)  # counts by class, shape (C,)
        self._extremes: list[Tensor] = []  # the lowest and the highest label so far
        self._bad, self._first_bad = torch.zeros((), dtype=torch.int64), torch.tensor(NONE)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add samples: logits (n, C) of any device and dtype, and class indices (n,). Both may be changed afterwards.

        Raises:
            InputError: for other shapes and types, and another C than before.
        """
        if logits.ndim != 2 or len(logits) != len(target):
            raise InputError(
                f"metrics need logits of shape (N, C) for N labels, not {tuple(logits.shape)} for {len(target)} labels"
            )
        validate_labels(target[:0], logits.shape[1], "set to evaluate")  # all but the values, which may be on a device
        logits, target = logits.detach(), target.detach()
        if logits.device.type == "mps":  # no float64 there
            logits = logits.cpu()
        target = target.to(logits.device)
        self._start(logits)
        self.samples += len(target)
        size = CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
        if logits.numel() >= size:
            self._flush()
            for batch in _chunks(logits, target, size):
                self._add(*batch)
            return
        self._pending.append((logits.clone(), target.clone()))
        self._pending_size += logits.numel()
        if self._pending_size >= size:
            self._flush()

    def first_bad_row(self) -> int | None:
        """The first sample, counted from 0, with a NaN or infinite logit."""
        self._flush()
        return None if int(self._first_bad) == NONE else int(self._first_bad)

    def compute(self) -> dict[str, float]:
        """All metrics by name, as :meth:`Metrics.__call__` gives them for all samples at once.

        Raises:
            InputError: for labels out of range, logits that are not finite, no samples, and where a metric is not defined for
                the labels.
        """
        self._flush()
        if not self.samples:
            raise InputError("the set to evaluate is empty")
        validate_labels(torch.stack(self._extremes).cpu(), self._num_classes, "set to evaluate")
        # checked in ascending order: what a metric is defined for does not depend on the order
        self._metrics.check(torch.arange(self._num_classes).repeat_interleave(self._labels.cpu()), self._num_classes)
        if int(self._bad):
            raise InputError(
                f"metrics need finite logits; {int(self._bad)} of {self.samples} samples have a NaN or infinite one"
            )
        result: dict[str, float] = {}
        for name, accumulator in self._accumulators.items():
            value = accumulator.compute()
            if isinstance(value, dict):
                result |= {f"{name}/{self._metrics.class_name(c)}": number for c, number in value.items()}
            else:
                result[name] = value
        return result

    def _start(self, logits: Tensor) -> None:
        classes = logits.shape[1]
        if self._num_classes and classes != self._num_classes:
            raise InputError(f"metrics need logits of the same classes: {self._num_classes} so far, now {classes}")
        if self._num_classes:
            return
        self._accumulators = self._metrics.accumulators(classes)
        self._num_classes = classes
        self._labels = torch.zeros(classes, dtype=torch.int64, device=logits.device)
        self._bad, self._first_bad = (
            each.to(logits.device, non_blocking=True) for each in (self._bad, self._first_bad)
        )

    def _flush(self) -> None:
        if self._pending:
            logits, target = (torch.cat(each) for each in zip(*self._pending, strict=True))
            self._pending, self._pending_size = [], 0
            self._add(logits, target)

    def _add(self, logits: Tensor, target: Tensor) -> None:
        if not len(target):
            return
        lowest, highest = target.aminmax()
        if self._extremes:
            lowest, highest = torch.minimum(lowest, self._extremes[0]), torch.maximum(highest, self._extremes[1])
        self._extremes = [lowest, highest]
        target = target.clamp(0, self._num_classes - 1)  # an index out of range would end a process on a GPU
        rows = torch.arange(self._added, self._added + len(target), device=target.device)
        self._added += len(target)
        finite = finite_rows(logits)
        self._bad += (~finite).sum()
        self._first_bad = torch.minimum(self._first_bad, torch.where(finite, NONE, rows).amin())
        self._labels.index_add_(0, target, torch.ones_like(target))
        for accumulator in self._accumulators.values():
            accumulator.update(logits, target)


def _chunks(logits: Tensor, target: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of at most ``size`` logits, and at least one row."""
    rows = max(size // max(logits.shape[1], 1), 1)
    return zip(logits.split(rows), target.split(rows), strict=True)
