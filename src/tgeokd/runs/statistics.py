"""What the seeds of a comparison allow to say: paired differences, intervals, corrected p values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

from tgeokd.core.metrics import higher_is_better
from tgeokd.utils.errors import InputError, unknown_name

__all__ = ["PairedDifference", "holm", "paired", "paired_table", "relative_improvement"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """A mean of paired differences and how sure it is.

    Attributes:
        mean: of the differences, in their unit.
        low: lower end of the 95 % interval; None where there is no spread to judge by.
        high: upper end, or None.
        p: two-sided p value of "the mean is 0", or None.
        n: number of pairs; the t distribution has n - 1 degrees of freedom.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def paired(differences: Sequence[float]) -> PairedDifference:
    """Paired t test: the mean of the differences, its 95 % interval, and the p value of a mean of 0.

    One difference has no spread, and differences that are all the same have none either (a t statistic would divide by 0,
    and certainty is not what two equal counts on a small test set show): then interval and p value are None.

    Args:
        differences: one a pair, finite.

    Raises:
        InputError: for no differences, or one that is not finite.
    """
    n = len(differences)
    if not n or not all(map(math.isfinite, differences)):
        raise InputError(f"a paired test needs at least one difference, all finite, not {list(differences)}")
    mean = statistics.fmean(differences)
    deviation = statistics.stdev(differences) if n > 1 else 0.0
    if deviation <= 1e-9 * max(map(abs, differences)):  # the same but for rounding
        return PairedDifference(mean, None, None, None, n)
    error = deviation / math.sqrt(n)
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(student_t.sf(abs(mean) / error, n - 1))
    return PairedDifference(mean, mean - half_width, mean + half_width, p, n)


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
    runs: Iterable[dict[str, Any]], metric: str, *, reference_prefix: str = "tgeo"
) -> list[dict[str, Any]]:
    """Each reference row against every other row of its setting, over the seeds that both have.

    Args:
        runs: as in ``results.json``: mappings with ``setting``, ``method``, ``seed`` and ``metrics``.
        metric: key of the compared metric, on the test set or, as ``val_...``, on the held-out set.
        reference_prefix: how the names of reference rows begin.

    Returns:
        One mapping a pair of rows, in the order of the runs: ``setting``, ``metric``, ``reference``, ``method``, ``gain``
        (mean difference, turned so that a positive one speaks for the reference), ``low``, ``high``, ``p``, ``p_holm``
        (corrected within the setting and reference row) and ``n`` (shared seeds). Numbers that cannot be given are None: all
        of them without a shared seed or with a metric that is not finite, all but the gain without a spread (see
        :func:`paired`).

    Raises:
        InputError: for an unknown metric, a run without it, or two runs of the same setting, method and seed.
    """
    settings: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        if metric not in run["metrics"]:
            raise unknown_name("metric", metric, run["metrics"])
        seeds = settings.setdefault(run["setting"], {}).setdefault(run["method"], {})
        if run["seed"] in seeds:
            raise InputError(f"two runs of {run['method']!r} in setting {run['setting']!r} have seed {run['seed']}")
        seeds[run["seed"]] = float(run["metrics"][metric])
    sign = 1.0 if higher_is_better(metric.removeprefix("val_")) else -1.0
    table: list[dict[str, Any]] = []
    for setting, rows in settings.items():
        for reference in (name for name in rows if name.startswith(reference_prefix)):
            names = {"setting": setting, "metric": metric, "reference": reference}
            family = [
                {**names, "method": other, **_comparison(rows[reference], values, sign)}
                for other, values in rows.items()
                if other != reference
            ]
            tested = [row for row in family if row["p"] is not None]
            for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
                row["p_holm"] = p
            table += family
    return table


def _comparison(reference: dict[int, float], other: dict[int, float], sign: float) -> dict[str, Any]:
    differences = [sign * (value - other[seed]) for seed, value in reference.items() if seed in other]
    if not differences or not all(map(math.isfinite, differences)):
        return {"gain": None, "low": None, "high": None, "p": None, "p_holm": None, "n": len(differences)}
    found = paired(differences)
    return {"gain": found.mean, "low": found.low, "high": found.high, "p": found.p, "p_holm": None, "n": found.n}


def relative_improvement(auc: float, base_auc: float) -> float | None:
    """How much more of the way from chance (0.5) to certainty an AUC is than another: ``(auc - 0.5) / (base - 0.5) - 1``.

    Args:
        auc: area under the ROC curve.
        base_auc: the one to compare with.

    Returns:
        0.01 for 1 % more; None where the base is no better than chance and the ratio means nothing.
    """
    return (auc - 0.5) / (base_auc - 0.5) - 1 if base_auc > 0.5 else None
