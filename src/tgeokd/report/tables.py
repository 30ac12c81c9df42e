"""Results of a comparison as tables of text."""

from __future__ import annotations

from tgeokd.runs.results import ComparisonResults, PairedDifference

__all__ = ["comparison_table", "formatted", "paired_differences", "title"]

# How a metric is shown: its title, a factor and how many digits.
_METRICS = {
    "accuracy": ("accuracy, %", 100, 2),
    "macro_f1": ("macro F1, %", 100, 2),
    "macro_auc": ("macro AUC", 1, 4),
    "auc": ("AUC", 1, 4),
    "detection_rate": ("found at 1 % false alarms, %", 100, 2),
    "nll": ("NLL", 1, 4),
    "calibration": ("calibration error", 1, 4),
}


def title(metric: str) -> str:
    """How a metric is called in a table."""
    if metric.startswith("recall/"):
        return f"recall of {metric.removeprefix('recall/')}, %"
    return _METRICS[metric][0]


def formatted(metric: str, mean: float | None, std: float | None = None) -> str:
    """A value of a metric, with its standard deviation where it has one."""
    if mean is None:
        return "-"
    _, factor, digits = _METRICS.get(metric, ("", 100, 2))
    spread = f" ± {factor * std:.{digits}f}" if std is not None else ""
    return f"{factor * mean:.{digits}f}{spread}"


def comparison_table(
    results: ComparisonResults, variant: str, *, brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a data variant's table.

    Test metrics of the last epoch, the primary one first, with their standard deviation over the seeds; the held-out value of
    the primary metric and the epoch (from 1) of its best; seconds and peak memory a run, and these relative to plain KD; what
    choosing the hyper-parameters cost; published values where the comparison has them.

    Args:
        results: of the comparison.
        variant: one of its data variants.
        brief: for a terminal: fewer columns.
    """
    summary = [row for row in results.summary if row.variant == variant]
    primary = results.primary_metric
    names = dict.fromkeys(name for row in summary for name in row.metrics)
    others = ["nll"] if brief else [name for name in names if not name.startswith("val_") and name != primary]
    tuned = any(row.tuning_runs for row in summary)
    improved = any(row.relative_improvement is not None for row in summary)
    claimed = {} if brief else {claim.row: claim.value for claim in results.claims}
    header = ["method", *map(title, (primary, *others)), "held-out", "s", "x kd"]
    if not brief:
        header += ["best epoch", "MiB", "MiB, x kd"]
        header += ["runs to tune", "s to tune"] if tuned else []
        header += ["AUC gain over ce, %"] if improved else []
        header += ["claimed"] if claimed else []
    rows = []
    for row in summary:
        spreads = [row.metrics.get(name) for name in (primary, *others)]
        cells = [row.label]
        cells += [
            formatted(name, *((spread.mean, spread.sd) if spread else (None,)))
            for name, spread in zip((primary, *others), spreads, strict=True)
        ]
        # the validation value of a row that trained on these samples means nothing
        trained_on = row.trains_on_validation
        cells.append("-" if trained_on else formatted(primary, row.metrics[f"val_{primary}"].mean))
        cells += [f"{row.seconds.mean:.2f}", _ratio(row.seconds_vs_kd)]
        if not brief:
            cells.append("-" if trained_on else f"{row.best_epoch + 1:.1f}")
            cells += [f"{row.peak_memory_mb.mean:.0f}", _ratio(row.memory_vs_kd)]
            cells += [str(row.tuning_runs), f"{row.tuning_seconds:.0f}"] if tuned else []
            if improved:
                gain = row.relative_improvement
                cells.append("-" if gain is None else f"{100 * gain:+.2f}")
            if claimed:
                cells.append(formatted(primary, claimed.get(row.spec)))
        rows.append(cells)
    return header, rows


def paired_differences(pairs: list[PairedDifference], variant: str) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the paired differences of a data variant; None where there are none."""
    rows = []
    metric = ""
    for pair in pairs:
        if pair.variant == variant:
            metric = pair.metric
            interval = "-"
            if pair.low is not None:
                interval = f"{formatted(metric, pair.low)} to {formatted(metric, pair.high)}"
            p = "-" if pair.p_holm is None else f"{pair.p_holm:.3f}"
            rows.append([f"{pair.reference.label} - {pair.other.label}", formatted(metric, pair.gain), interval, p])
    return (["", title(metric), "95 % interval", "p (Holm)"], rows) if rows else None


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
