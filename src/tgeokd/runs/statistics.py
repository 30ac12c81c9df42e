"""Statistics over the seeds of a comparison: summaries, paired differences, intervals, corrected p values."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

from tgeokd.core.metrics import higher_is_better
from tgeokd.runs.results import MethodSpec, PairedDifference, RowSummary, RunRecord, Spread, TuningRecord, default_rows
from tgeokd.utils.errors import InputError, unknown_name

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedTest:
    """A mean of paired differences and its uncertainty; None where the differences have no spread."""

    mean: float
    low: float | None  # ends of the 95 % interval
    high: float | None
    p: float | None  # two-sided p value of "the mean is 0"
    n: int  # number of pairs; the t distribution has n - 1 degrees of freedom


def paired(differences: Sequence[float]) -> PairedTest:
    """Paired t test: the mean of at least one finite difference, its 95 % interval, and the p value of a mean of 0.

    One difference has no spread, nor have differences that are all the same (two equal counts on a small test set are no
    certainty, and the t statistic would divide by 0): interval and p value are None then.
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
    """P values of one family of tests, corrected for their number in the order given: the family-wise error rate is kept.

    The k-th smallest of m, k from 0, is multiplied by m - k, made no smaller than the one before, and cut off at 1 (Holm,
    "A Simple Sequentially Rejective Multiple Test Procedure", 1979).
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
    """Each reference row against every other row of its data variant, over the seeds that both have, in the order of the runs.

    Args:
        runs: of any variants and rows, each with the metric, and no two of the same variant, row and seed.
        metric: on the test set or, as ``val_...``, on the validation set.
        references: rows that a positive gain speaks for; by default :func:`~tgeokd.runs.results.default_rows`.
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
            names: dict[str, Any] = {"variant": variant, "metric": metric, "reference": reference}
            others = [other for other in rows if other != reference]
            family = [
                PairedDifference(**names, other=other, **_difference(rows[reference], rows[other], sign))
                for other in others
            ]
            corrected = iter(holm([pair.p for pair in family if pair.p is not None]))
            table += [pair if pair.p is None else dataclasses.replace(pair, p_holm=next(corrected)) for pair in family]
    return table


def _difference(reference: Mapping[int, float], other: Mapping[int, float], sign: float) -> dict[str, Any]:
    """Gain, interval, p value and number of the shared seeds; None without one, or with a value that is not finite."""
    differences = [sign * (value - other[seed]) for seed, value in reference.items() if seed in other]
    if not differences or not all(map(math.isfinite, differences)):
        return {"gain": None, "low": None, "high": None, "p": None, "n": len(differences)}
    test = dataclasses.asdict(paired(differences))
    return {"gain": test.pop("mean"), **test}


def summarise(runs: Sequence[RunRecord], tuning: Iterable[TuningRecord] = ()) -> list[RowSummary]:
    """Each row over its seeds, by data variant and row, in the order of the runs."""
    grouped: dict[tuple[str, MethodSpec], list[RunRecord]] = {}
    first: dict[tuple[str, str], list[RunRecord]] = {}  # runs of the first row of a method
    for run in runs:
        own = grouped.setdefault((run.variant, run.spec), [])
        own.append(run)
        first.setdefault((run.variant, run.method), own)
    trials = {(record.variant, record.spec): record.trials for record in tuning}
    summary = []
    for (variant, row), own in grouped.items():
        kd, ce = (first.get((variant, method)) for method in ("kd", "ce"))
        seconds, memory = _spread([run.seconds for run in own]), _spread([run.peak_memory_mb for run in own])
        tried = trials.get((variant, row), [])
        # the recall of a class is missing where the split of a seed lacks the class
        names = dict.fromkeys(name for run in own for name in run.metrics)
        summary.append(
            RowSummary(
                variant=variant,
                **dataclasses.asdict(row),
                runs=len(own),
                metrics={name: _spread([run.metrics[name] for run in own if name in run.metrics]) for name in names},
                seconds=seconds,
                peak_memory_mb=memory,
                best_epoch=statistics.fmean(run.best_epoch for run in own),
                trains_on_validation=own[0].trains_on_validation,
                seconds_vs_kd=seconds.mean / statistics.mean(run.seconds for run in kd) if kd else None,
                memory_vs_kd=memory.mean / statistics.mean(run.peak_memory_mb for run in kd) if kd else None,
                relative_improvement=relative_improvement(_auc(own), _auc(ce)) if "auc" in names and ce else None,
                tuning_runs=len(tried),
                tuning_seconds=float(sum(trial["seconds"] for trial in tried)),
            )
        )
    return summary


def _spread(values: list[float]) -> Spread:
    has_sd = len(values) > 1 and all(map(math.isfinite, values))
    return Spread(statistics.mean(values), statistics.stdev(values) if has_sd else None)


def _auc(runs: Iterable[RunRecord]) -> float:
    return statistics.mean(run.metrics["auc"] for run in runs)


def relative_improvement(auc: float, base_auc: float) -> float | None:
    """Relative improvement of an AUC above chance over another one: ``(auc - 0.5) / (base - 0.5) - 1``.

    None where the base is no better than chance and the ratio means nothing.
    """
    return (auc - 0.5) / (base_auc - 0.5) - 1 if base_auc > 0.5 else None
