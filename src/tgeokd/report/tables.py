"""Results of a comparison as tables of text."""

from collections.abc import Iterable
from typing import NamedTuple

from tgeokd.core.metrics import formatted, title
from tgeokd.runs.results import ComparisonResults, PairedDifference, RowSummary

__all__ = ["Table", "comparison_table", "formatted", "paired_differences", "title"]


class Table(NamedTuple):
    """Cells of text; the first column names the row."""

    header: list[str]
    rows: list[list[str]]


def comparison_table(results: ComparisonResults, variant: str, *, brief: bool = False) -> Table:
    """The rows of a comparison on a variant of the data; ``brief`` has fewer columns, for a terminal.

    Columns: test metrics of the last epoch, the primary one first, with their standard deviation over the seeds; validation
    value of the primary metric, and epoch (from 1) of its best value; seconds and peak memory per run, and their ratio to
    ``kd``; the cost of the hyper-parameter search; published values where the comparison has them.
    """
    summary = [row for row in results.summary if row.variant == variant]
    primary = results.primary_metric
    names = dict.fromkeys(name for row in summary for name in row.metrics)
    others = ["nll"] if brief else [name for name in names if not name.startswith("val_") and name != primary]
    tuned = any(row.tuning_runs for row in summary)
    improved = any(row.relative_improvement is not None for row in summary)
    claims = {claim.row: claim.value for claim in results.claims}

    def cells(row: RowSummary) -> dict[str, str]:
        # The validation metrics of a row that trained on the validation set mean nothing.
        trained_on, validation = row.trains_on_validation, row.metrics[f"val_{primary}"].mean
        found = {"method": row.label}
        for name in (primary, *others):
            spread = row.metrics.get(name)
            found[title(name)] = "-" if spread is None else formatted(name, spread.mean, spread.sd)
        found |= {"validation": "-" if trained_on else formatted(primary, validation)}
        found |= {"s": f"{row.seconds.mean:.2f}", "x kd": _optional(row.seconds_vs_kd)}
        if brief:
            return found
        found |= {"best epoch": "-" if trained_on else f"{row.best_epoch + 1:.1f}"}
        found |= {"MiB": f"{row.peak_memory_mb.mean:.0f}", "MiB, x kd": _optional(row.memory_vs_kd)}
        if tuned:
            found |= {"runs to tune": str(row.tuning_runs), "s to tune": f"{row.tuning_seconds:.0f}"}
        if improved:
            found |= {"AUC gain over ce, %": _optional(row.relative_improvement, "+.2f", factor=100)}
        if claims:
            found |= {"published": formatted(primary, claims.get(row.spec))}
        return found

    rows = [cells(row) for row in summary]
    return Table(list(rows[0]), [list(row.values()) for row in rows])


def paired_differences(pairs: Iterable[PairedDifference], variant: str) -> Table | None:
    """The paired differences on a variant of the data; None without any."""
    chosen = [pair for pair in pairs if pair.variant == variant]
    if not chosen:
        return None
    metric = chosen[0].metric
    rows = []
    for pair in chosen:
        interval = "-" if pair.low is None else f"{formatted(metric, pair.low)} to {formatted(metric, pair.high)}"
        names = f"{pair.reference.label} - {pair.other.label}"
        rows.append([names, formatted(metric, pair.gain), interval, _optional(pair.p_holm, ".3f")])
    return Table(["", title(metric), "95 % interval", "p (Holm)"], rows)


def _optional(value: float | None, form: str = ".2f", *, factor: int = 1) -> str:
    return "-" if value is None else f"{factor * value:{form}}"
