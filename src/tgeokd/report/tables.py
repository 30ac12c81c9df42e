"""Results of a comparison as tables of text."""

from __future__ import annotations

from typing import Any

from tgeokd.core.metrics import formatted, title

__all__ = ["comparison_table", "formatted", "paired_differences", "title"]


def comparison_table(
    results: dict[str, Any], setting: str, *, brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a setting's table.

    Test metrics of the last epoch, the primary one first, with their standard deviation over the seeds; the held-out value of
    the primary metric and the epoch (from 1) of its best; seconds and peak memory a run, and these relative to plain KD; what
    choosing the hyper-parameters cost; published values where the comparison has them.

    Args:
        results: the content of a comparison's ``results.json``.
        setting: one of its settings.
        brief: for a terminal: fewer columns.
    """
    summary = [row for row in results["summary"] if row["setting"] == setting]
    primary = results["primary_metric"]
    present = [
        key.removesuffix("_mean") for key in summary[0] if key.endswith("_mean") and f"{key[:-5]}_std" in summary[0]
    ]
    others = [name for name in present if not name.startswith("val_") and name != primary]
    if brief:
        others = ["nll"]
    tuned = any(row["tuning_runs"] for row in summary)
    claimed = results.get("claimed", {}) if not brief else {}
    header = ["method", *map(title, (primary, *others)), "held-out", "s", "x kd"]
    if not brief:
        header += ["best epoch", "MiB", "MiB, x kd"]
        header += ["runs to tune", "s to tune"] if tuned else []
        header += ["AUC gain over ce, %"] if "relative_improvement" in summary[0] else []
        header += ["claimed"] if claimed else []
    rows = []
    for row in summary:
        cells = [row["method"]]
        cells += [formatted(name, row.get(f"{name}_mean"), row.get(f"{name}_std")) for name in (primary, *others)]
        # the held-out value of a row that trained on these samples means nothing
        trained_on = row.get("trains_on_held_out", "train+val" in row["method"])  # older files do not say
        cells.append("-" if trained_on else formatted(primary, row[f"val_{primary}_mean"]))
        cells += [f"{row['seconds_mean']:.2f}", _ratio(row["seconds_vs_kd"])]
        if not brief:
            cells.append("-" if trained_on else f"{row['best_epoch_mean'] + 1:.1f}")
            cells += [f"{row['peak_memory_mb_mean']:.0f}", _ratio(row["memory_vs_kd"])]
            cells += [str(row["tuning_runs"]), f"{row['tuning_seconds']:.0f}"] if tuned else []
            if "relative_improvement" in summary[0]:
                gain = row["relative_improvement"]
                cells.append("-" if gain is None else f"{100 * gain:+.2f}")
            if claimed:
                cells.append(formatted(primary, claimed.get(row["method"], {}).get("value")))
        rows.append(cells)
    return header, rows


def paired_differences(results: dict[str, Any], setting: str) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the differences of each ``tgeo`` row to the others; None where there are none."""
    rows = []
    for pair in results["paired"]:
        if pair["setting"] == setting:
            metric = pair["metric"]
            interval = "-"
            if pair["low"] is not None:
                interval = f"{formatted(metric, pair['low'])} to {formatted(metric, pair['high'])}"
            p = "-" if pair["p_holm"] is None else f"{pair['p_holm']:.3f}"
            rows.append([f"{pair['reference']} - {pair['method']}", formatted(metric, pair["gain"]), interval, p])
    return (["", title(results["primary_metric"]), "95 % interval", "p (Holm)"], rows) if rows else None


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
