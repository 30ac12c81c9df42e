"""Shared by all benchmarks: alternating measurements in one process, and the figures made from them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Figure", "interleaved", "ratios", "seconds_of", "threads"]


@dataclass(frozen=True)
class Figure:
    """One number of the benchmark.

    Attributes:
        name: the quantity and its models.
        value: median over the runs.
        low: smallest value.
        high: largest value.
        runs: number of values.
        limit: the value must not exceed it; None for a figure that is only reported.
        note: definition, absolute numbers.
    """

    name: str
    value: float
    low: float
    high: float
    runs: int
    limit: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit

    @classmethod
    def of(cls, name: str, values: list[float], *, limit: float | None = None, note: str = "") -> Figure:
        """The figure of a series of values."""
        return cls(name, statistics.median(values), min(values), max(values), len(values), limit, note)


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call; garbage is collected before it and not during it."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    finally:
        gc.enable()


def interleaved(measures: dict[str, Callable[[], float]], runs: int, *, warmup: int = 1) -> dict[str, list[float]]:
    """Values of alternating measurements, A B C A B C ..., so that a drift of the machine affects all of them.

    Args:
        measures: by name, a call that returns one value (for example seconds per step).
        runs: counted rounds.
        warmup: uncounted rounds before them.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    for round_ in range(warmup + runs):
        for name, measure in measures.items():
            value = measure()
            if round_ >= warmup:
                values[name].append(value)
    return values


def ratios(values: dict[str, list[float]], above: str, below: str) -> list[float]:
    """Ratio of two measures, round by round."""
    return [a / b for a, b in zip(values[above], values[below], strict=True)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run a block with this many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
