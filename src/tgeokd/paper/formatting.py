"""Means, paired differences and their intervals over the seeds, and how they are printed."""

import statistics
from collections.abc import Iterable

from tgeokd.core.metrics import METRICS
from tgeokd.runs.statistics import PairedTest, paired


def difference(values: Iterable[float | None]) -> PairedTest | None:
    """Mean and 95 % interval of one difference per seed. Seeds without a value (None) are left out; None without any."""
    known = [value for value in values if value is not None]
    return paired(known) if known else None


def subtract(first: Iterable[float | None], second: Iterable[float | None]) -> list[float | None]:
    """``first - second`` by seed, None where either is."""
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def improvement(metric: str, values: Iterable[float | None], other: Iterable[float | None]) -> PairedTest | None:
    """By how much values of a metric are better than others, one of each per seed; positive is better."""
    sign = 1.0 if METRICS[metric.partition("/")[0]].higher_is_better else -1.0
    return difference(None if gap is None else sign * gap for gap in subtract(values, other))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_text(values: Iterable[float | None]) -> str:
    """The mean with two digits, or ``-``."""
    value = mean(values)
    return "-" if value is None else f"{value:.2f}"


def interval(d: PairedTest | None, metric: str | None = None) -> str:
    """``+1.20 points (95 % interval +0.30 to +2.10)``, or why there is no interval; the unit and digits are the metric's."""
    if d is None:
        return "- (no samples)"
    factor, digits = 1.0, 2
    if metric is not None:
        shown = METRICS[metric.partition("/")[0]]
        factor, digits = shown.factor, shown.digits
    value = f"{factor * d.mean:+.{digits}f}{'' if factor == 1 else ' points'}"
    if d.low is None or d.high is None:
        return f"{value} ({'one seed' if d.n == 1 else 'equal in all seeds'}, no interval)"
    return f"{value} (95 % interval {factor * d.low:+.{digits}f} to {factor * d.high:+.{digits}f})"


def verdict(d: PairedTest | None, above: str, below: str) -> str:
    """The conclusion that an interval allows: ``above`` 0, ``below`` 0, or none."""
    if d is None:
        return "no conclusion"
    if d.low is None or d.high is None:
        return "no difference in any seed" if d.n > 1 and d.mean == 0 else "no conclusion without an interval"
    if d.low <= 0 <= d.high:
        return "no clear difference (the interval includes 0)"
    return above if d.mean > 0 else below
