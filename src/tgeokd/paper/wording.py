"""Numbers of several seeds as words: values, intervals, and what they allow to say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from tgeokd.runs.statistics import PairedTest, paired

__all__ = ["difference", "gained", "interval", "mean", "shown", "verdict"]

_UNITLESS = ("nll", "calibration")


def difference(values: Iterable[float | None]) -> PairedTest | None:
    """Mean and 95 % interval of one difference a seed; seeds without one (None) are left out. None where none is left."""
    known = [value for value in values if value is not None]
    return paired(known) if known else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def shown(value: float | None, digits: int = 2) -> str:
    """A value, or that there is none."""
    return "none" if value is None else f"{value:.{digits}f}"


def interval(d: PairedTest | None, *, factor: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """``+1.20 points (95 % interval +0.30 to +2.10)``, or why there is no interval."""
    if d is None:
        return "nothing to compare"
    value = f"{factor * d.mean:+.{digits}f}{unit}"
    if d.low is None or d.high is None:
        reason = "one seed, no interval" if d.n == 1 else f"the same in all {d.n} seeds, no interval"
        return f"{value} ({reason})"
    return f"{value} (95 % interval {factor * d.low:+.{digits}f} to {factor * d.high:+.{digits}f})"


def gained(d: PairedTest | None, metric: str) -> str:
    """The interval of a difference in a metric: points of a hundred, or the metric's own unit for a loss."""
    return interval(d, digits=4) if metric in _UNITLESS else interval(d, factor=100.0, unit=" points")


def verdict(d: PairedTest | None, above: str, below: str) -> str:
    """What an interval allows to say: ``above`` or ``below`` zero, or that it says neither."""
    if d is None:
        return "nothing to say"
    if d.low is None or d.high is None:
        same = d.n > 1 and d.mean == 0
        return "no difference in any seed" if same else "not to be judged without an interval"
    if d.low <= 0 <= d.high:
        return "not seen: the interval covers zero"
    return above if d.mean > 0 else below
