"""Statistics over the seeds of a comparison: paired differences, intervals, corrected p values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from tgeokd.core.metrics import higher_is_better
from tgeokd.runs.results import MethodSpec, PairedDifference, RunRecord, default_rows
from tgeokd.utils.errors import InputError, unknown_name

__all__ = ["PairedTest", "holm", "paired", "paired_table", "relative_improvement"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedTest:
    """A mean of paired differences and its uncertainty.

    Attributes:
        mean: of the differences, in their unit.
        low: lower end of the 95 % interval; None where the differences have no spread.
        high: upper end, or None.
        p: two-sided p value of "the mean is 0", or None.
        n: number of pairs; the t distribution has n - 1 degrees of freedom.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def paired(differences: Sequence[float]) -> PairedTest:
    """Paired t test: the mean of the differences, its 95 % interval, and the p value of a mean of 0.

    One difference has no spread, nor have differences that are all the same (two equal counts on a small test set are no
    certainty, and the t statistic would divide by 0): interval and p value are None then.

    Args:
        differences: one per pair, finite.

    Raises:
        InputError: for no differences, or one that is not finite.
    """
    n = len(differences)
    if not n or not all(map(math.isfinite, differences)):
        raise InputError(f"a paired test needs at least one difference, all finite, not {list(differences)}")
    mean = statistics.fmean(differences)
    deviation = statistics.stdev(differences) if n > 1 else 0.0
    if deviation <= 1e-9 * max(map(abs, differences)):  # the same but for rounding
        return PairedTest(mean, None, None, None, n)
    error = deviation / math.sqrt(n)
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(student_t.sf(abs(mean) / error, n - 1))
    return PairedTest(mean, mean - half_width, mean + half_width, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method, in the order given.

    The k-th smallest of m, k from 0, is multiplied by m - k, made no smaller than the one before, and cut off at 1. Among
    all of a family that fall below a level, the chance of any false one is at most that level.

    Args:
        p_values: of one family of tests, each in [0, 1].

    Raises:
        InputError: for a p value outside [0, 1].

    Reference:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise InputError(f"p values must lie in [0, 1], not {wrong[0]}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def paired_table(
    runs: Sequence[RunRecord], metric: str, references: Sequence[MethodSpec] | None = None
) -> list[PairedDifference]:
    """Each reference row against every other row of its data variant, over the seeds that both have.

    Args:
        runs: of any variants and rows.
        metric: the compared one, on the test set or, as ``val_...``, on the validation set.
        references: rows that a positive gain speaks for; by default :func:`~tgeokd.runs.results.default_rows`.

    Returns:
        One record per pair of rows, in the order of the runs.

    Raises:
        InputError: for an unknown metric, a run without it, or two runs of the same variant, row and seed.
    """
    variants: dict[str, dict[MethodSpec, dict[int, float]]] = {}
    for run in runs:
        if metric not in run.metrics:
            raise unknown_name("metric", metric, run.metrics)
        seeds = variants.setdefault(run.variant, {}).setdefault(run.spec, {})
        if run.seed in seeds:
            raise InputError(f"two runs of {run.label!r} in variant {run.variant!r} have seed {run.seed}")
        seeds[run.seed] = run.metrics[metric]
    wanted = default_rows([run.spec for run in runs]) if references is None else references
    sign = 1.0 if higher_is_better(metric.removeprefix("val_")) else -1.0
    table: list[PairedDifference] = []
    for variant, rows in variants.items():
        for reference in (row for row in rows if row in wanted):
            others = [other for other in rows if other != reference]
            tests = [_compared(rows[reference], rows[other], sign) for other in others]
            corrected = iter(holm([p for *_, p in tests if p is not None]))
            for other, (gain, low, high, p) in zip(others, tests, strict=True):
                table.append(
                    PairedDifference(
                        variant=variant,
                        metric=metric,
                        reference=reference,
                        other=other,
                        gain=gain,
                        low=low,
                        high=high,
                        p=p,
                        p_holm=None if p is None else next(corrected),
                        n=len(rows[reference].keys() & rows[other].keys()),
                    )
                )
    return table


def _compared(reference: Mapping[int, float], other: Mapping[int, float], sign: float) -> tuple[float | None, ...]:
    """Gain, interval and p value over the shared seeds; None without one, or with a value that is not finite."""
    differences = [sign * (value - other[seed]) for seed, value in reference.items() if seed in other]
    if not differences or not all(map(math.isfinite, differences)):
        return (None, None, None, None)
    found = paired(differences)
    return found.mean, found.low, found.high, found.p


def relative_improvement(auc: float, base_auc: float) -> float | None:
    """Relative improvement of an AUC above chance over another one: ``(auc - 0.5) / (base - 0.5) - 1``.

    Args:
        auc: area under the ROC curve.
        base_auc: the one to compare with.

    Returns:
        0.01 for 1 % more; None where the base is no better than chance and the ratio means nothing.
    """
    return (auc - 0.5) / (base_auc - 0.5) - 1 if base_auc > 0.5 else None
