"""Figures of runs and comparisons, as PNG."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tgeokd.core.metrics import METRICS
from tgeokd.core.metrics import title as metric_title
from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.runs.statistics import paired
from tgeokd.utils.files import replace_file

BLUE, RED, GREY = "#1b6ca8", "#c8553d", "#8a8a8a"
RATIO_AXIS = "fusion ratio alpha (0 = label, 1 = teacher)"
_STYLES = itertools.product((("=", BLUE), ("≠", RED)), (("agrees", "-"), ("disagrees", "--")))
GROUP_STYLE: dict[str, dict[str, Any]] = {
    name: {"label": f"teacher {sign} label, student {state}", "color": color, "linestyle": line}
    for name, ((sign, color), (state, line)) in zip(GROUPS, _STYLES, strict=True)
}


def alpha_by_group(histories: Sequence[Sequence[dict[str, Any]]], path: Path, *, title: str) -> Path | None:
    """Mean alpha by epoch and group: teacher right or wrong, student and teacher agreeing or not.

    A group is drawn in the epochs in which it has at least 1 % of a run's samples: means of very few samples are noise.

    Args:
        histories: the records of one or more runs (seeds), one per epoch; a band shows the range of the runs.
        path: PNG to write. None is returned instead where no run has fusion ratios.
        title: above the figure.
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
    figure, (axes,) = new_figure(1, 1, 8.0, 4.2)
    for name, values in means.items():
        if not np.isnan(values).all():
            plot_range(axes, values, **GROUP_STYLE[name])
    axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set(xlabel="epoch", ylabel=f"mean {RATIO_AXIS.replace(' (', chr(10) + '(')}", ylim=(-0.02, 1.02), title=title)
    axes.set_xlim(1, max(epochs, 2))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return save(figure, path)


def alpha_by_label(alpha: Sequence[float], corrupted: Sequence[bool], path: Path, *, title: str) -> Path | None:
    """Histogram of alpha for training samples with clean and with ``corrupted`` labels; None unless there are both kinds."""
    ratios, wrong = np.asarray(alpha), np.asarray(corrupted, dtype=bool)
    if not wrong.any() or wrong.all():
        return None
    figure, (axes,) = new_figure(1, 1, 6.4, 4.0)
    for mask, name, color in ((~wrong, "clean", BLUE), (wrong, "corrupted", RED)):
        share = np.full(mask.sum(), 100.0 / mask.sum())
        label = f"{name} labels (n = {mask.sum()}, mean {ratios[mask].mean():.2f})"
        axes.hist(ratios[mask], bins=20, range=(0, 1), weights=share, color=color, alpha=0.55, label=label)
    axes.set(xlabel=RATIO_AXIS, ylabel="share of samples, %", xlim=(0, 1), title=title)
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path)


def metric_by_row(
    values: Mapping[str, Sequence[float]], metric: str, path: Path, *, title: str, highlighted: Collection[str]
) -> Path:
    """Mean test value of each row with its 95 % t interval over the seeds (none for one seed).

    Args:
        values: one value of the metric per seed, by the name of the row.
        metric: key of :data:`~tgeokd.core.metrics.METRICS`.
        path: PNG to write.
        title: above the figure.
        highlighted: rows to draw in colour.
    """
    figure, (axes,) = new_figure(1, 1, 7.2, 1.2 + 0.3 * len(values))
    for y, (name, of) in enumerate(values.items()):
        mean = paired([METRICS[metric].factor * value for value in of])
        error = None if mean.high is None else mean.high - mean.mean
        color = BLUE if name in highlighted else GREY
        axes.errorbar(mean.mean, y, xerr=error, fmt="o", color=color, capsize=3, markersize=5)
    if METRICS[metric].higher_is_better:  # such metrics lie between 0 and 1
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.01 * METRICS[metric].factor), min(high, 1.01 * METRICS[metric].factor))
    axes.set_yticks(range(len(values)), list(values))
    label = f"test {metric_title(metric)} (mean and 95 % interval)"
    axes.set(xlabel=label, title=title, ylim=(len(values) - 0.4, -0.6))
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    return save(figure, path)


def plot_range(axes: Axes, values: Any, **style: Any) -> None:
    """The mean of ``values`` (runs, epochs) by epoch, with a band from the lowest to the highest run; NaN is not drawn."""
    known = np.ma.masked_invalid(values)
    x = np.arange(1, known.shape[1] + 1)
    axes.plot(x, known.mean(axis=0), linewidth=1.8, marker=".", markersize=4, **style)
    if len(known) > 1:
        axes.fill_between(x, known.min(axis=0), known.max(axis=0), color=style["color"], alpha=0.1, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def new_figure(
    rows: int, columns: int, width: float, height: float, *, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of a width and height in inches, and its axes row by row; ``share`` the vertical axis in a row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if share else False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    return path
