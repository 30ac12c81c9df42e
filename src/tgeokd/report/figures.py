"""Figures of runs and comparisons, as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.runs.results import DEFAULT_METHOD, RowSummary

__all__ = ["alpha_by_group", "alpha_by_label", "metric_by_method"]

_GROUP_STYLE = {
    "teacher_right_agree": ("teacher = label, student agrees", "#1b6ca8", "-"),
    "teacher_right_disagree": ("teacher = label, student disagrees", "#1b6ca8", "--"),
    "teacher_wrong_agree": ("teacher ≠ label, student agrees", "#c8553d", "-"),
    "teacher_wrong_disagree": ("teacher ≠ label, student disagrees", "#c8553d", "--"),
}
_LEARNED, _OTHER = "#1b6ca8", "#8a8a8a"


def alpha_by_group(histories: Sequence[Sequence[dict[str, Any]]], path: Path, *, title: str) -> Path | None:
    """Mean alpha over the epochs for teacher right or wrong against the label, student and teacher agreeing or not.

    A group is drawn in the epochs in which it holds at least 1 % of a run's samples: the mean of a handful is noise.

    Args:
        histories: the records of one or more runs (seeds), epoch by epoch; a band shows their range.
        path: PNG to write.
        title: over the figure.

    Returns:
        The path, or None where no run has fusion ratios.
    """
    epochs = max((len(history) for history in histories), default=0)
    means = {name: np.full((len(histories), epochs), np.nan) for name in GROUPS}
    for i, history in enumerate(histories):
        for record in history:
            groups = record.get("alpha") or {}
            total = sum(group["count"] for group in groups.values())
            for name, group in groups.items():
                if group["count"] >= max(1, 0.01 * total):
                    means[name][i, record["epoch"]] = group["mean"]
    if all(np.isnan(values).all() for values in means.values()):
        return None
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    x = np.arange(1, epochs + 1)
    for name, (label, color, line) in _GROUP_STYLE.items():
        values = np.ma.masked_invalid(means[name])
        if values.count() == 0:
            continue
        mean = values.mean(axis=0)
        axes.plot(x, mean, line, color=color, label=label, linewidth=1.8, marker=".", markersize=4)
        if len(histories) > 1:
            band = values.min(axis=0), values.max(axis=0)
            axes.fill_between(x, *band, color=color, alpha=0.10, linewidth=0)
    axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set(
        xlabel="epoch", ylabel="mean fusion ratio alpha\n(0 = label, 1 = teacher)", ylim=(-0.02, 1.02), title=title
    )
    axes.set_xlim(1, max(epochs, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return _save(figure, path)


def alpha_by_label(alpha: Sequence[float], corrupted: Sequence[bool], path: Path, *, title: str) -> Path | None:
    """Histogram of alpha for training samples with clean and with corrupted labels.

    Args:
        alpha: fusion ratio of each training sample.
        corrupted: which of their labels are known to be wrong.
        path: PNG to write.
        title: over the figure.

    Returns:
        The path, or None where no label is corrupted.
    """
    ratios, wrong = np.asarray(alpha), np.asarray(corrupted, dtype=bool)
    if not wrong.any() or wrong.all():
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for mask, name, color in ((~wrong, "clean", "#1b6ca8"), (wrong, "corrupted", "#c8553d")):
        share = np.full(mask.sum(), 100.0 / mask.sum())
        label = f"{name} labels (n = {mask.sum()}, mean {ratios[mask].mean():.2f})"
        axes.hist(ratios[mask], bins=20, range=(0, 1), weights=share, color=color, alpha=0.55, label=label)
    axes.set(
        xlabel="fusion ratio alpha (0 = label, 1 = teacher)", ylabel="share of samples, %", xlim=(0, 1), title=title
    )
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def metric_by_method(
    summary: Sequence[RowSummary], metric: str, path: Path, *, title: str, labels: Sequence[str] | None = None
) -> Path:
    """Mean test value of each row with its 95 % interval over the seeds (t distribution; no bar for one seed).

    Args:
        summary: rows of one data variant of a comparison.
        metric: which of its metrics.
        path: PNG to write.
        title: over the figure.
        labels: of the rows; by default their own.
    """
    from scipy.stats import t  # local: nothing else needs scipy at start-up

    rows = list(reversed(summary))
    figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        n, (mean, sd) = row.runs, (row.metrics[metric].mean, row.metrics[metric].sd)
        error = None if sd is None else 100 * sd / math.sqrt(n) * float(t.ppf(0.975, n - 1))
        color = _LEARNED if row.method == DEFAULT_METHOD else _OTHER
        mean *= 100
        axes.errorbar(mean, y, xerr=error, fmt="o", color=color, capsize=3, markersize=5)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -1), min(high, 101))
    axes.set_yticks(range(len(rows)), list(reversed(labels)) if labels is not None else [row.label for row in rows])
    axes.set(xlabel=f"test {metric}, % (mean and 95 % interval)", title=title, ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
