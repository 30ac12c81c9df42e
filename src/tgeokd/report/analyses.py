"""Figures of the analyses of :mod:`tgeokd.paper`, each made from the analysis' data, as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tgeokd.report.figures import metric_by_method
from tgeokd.runs.results import RowSummary
from tgeokd.utils.validation import validate_value

__all__ = [
    "draw_ablation",
    "draw_cost",
    "draw_fig1",
    "draw_fig3",
    "draw_fig4",
    "draw_fig5",
    "draw_oversampling",
]

_BLUE, _RED, _GREY = "#1b6ca8", "#c8553d", "#8a8a8a"
_SHADES = ("#08306b", "#2171b5", "#6baed6", "#fd8d3c", "#a63603")  # near to far
_OVER = {"plain": "no", "oversampled": "yes"}
_TOLD = {"right": "teacher = label", "wrong": "teacher ≠ label", "agree": "agrees", "disagree": "disagrees"}


def draw_fig1(data: Mapping[str, Any], path: Path) -> Path:
    """Test accuracy over the fixed alpha, one line a group of distance, where the teacher is right and where it is wrong."""
    seeds = data["seeds"]
    count = np.sum([seed["count"] for seed in seeds], axis=0)
    correct = np.sum([seed["correct"] for seed in seeds], axis=0)
    distance = np.sum([seed["distance_sum"] for seed in seeds], axis=0)
    figure, panels = _panels(1, 2, width=9.6, height=5.0)
    for row, (axes, name) in enumerate(zip(panels, ("right", "wrong"), strict=True)):
        for group in range(count.shape[1]):
            n = count[row, group]
            if n:
                label = f"S-T distance {distance[row, group] / n:.2f} (n = {n:.0f})"
                axes.plot(data["alphas"], 100 * correct[:, row, group] / n, "o-", color=_SHADES[group], label=label)
        axes.set(xlabel="fixed alpha (0 = label, 1 = teacher)", ylabel="test accuracy, %", title=_TOLD[name])
        if count[row].any():
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return _save(figure, path)


def draw_fig3(data: Mapping[str, Any], path: Path) -> Path:
    """Distribution of the learned alpha by group, with the edge S-T and without it, all seeds together."""
    figure, panels = _panels(1, 2, width=9.6, height=4.0, share=True)
    for axes, (edge, seeds) in zip(panels, data["alpha"].items(), strict=True):
        for name in data["groups"]:
            _, teacher, state = name.split("_")
            histogram = np.sum([seed[name]["histogram"] for seed in seeds], axis=0)
            style = {"color": _BLUE if teacher == "right" else _RED, "linestyle": "-" if state == "agree" else "--"}
            label = f"{_TOLD[teacher]}, student {_TOLD[state]} (n = {histogram.sum()})"
            _steps(axes, histogram, label=label, **style)
        axes.set(title=f"{edge} the edge S-T", xlabel="learned alpha (0 = label, 1 = teacher)", xlim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("share of training samples, %")
    return _save(figure, path)


def draw_fig4(data: Mapping[str, Any], path: Path) -> Path:
    """Distribution of alpha by group, all seeds together, and each seed's mean with the area under the ROC curve."""
    seeds = data["seeds"]
    names = list(dict.fromkeys(name for seed in seeds for name in seed))
    figure, (left, right) = _panels(1, 2, width=11.0, height=4.4)
    ticks: list[str] = []
    for i, name in enumerate(names):
        found = [seed[name] for seed in seeds if name in seed]
        color = f"C{i}"
        _steps(left, np.sum([group["histogram"] for group in found], axis=0), label=name, color=color, linestyle="-")
        right.plot([group["mean"] for group in found], [i] * len(found), "o", color=color, alpha=0.6)
        areas = [group["auroc_low"] for group in found if "auroc_low" in group]
        ticks.append(f"{name}\nAUROC of low alpha {np.mean(areas):.2f}" if areas else name)
    left.set(xlabel="learned alpha (0 = label, 1 = teacher)", ylabel="share of samples, %", xlim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    right.set_yticks(range(len(names)), ticks, fontsize=8)
    right.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="mean alpha, a point a seed")
    return _save(figure, path)


def draw_fig5(data: Mapping[str, Any], pairs: Mapping[str, tuple[str, str]], path: Path) -> Path:
    """Mean distance of student and teacher over the epochs, normal samples and outliers; a band shows the seeds' range.

    Args:
        data: of ``fig5``.
        pairs: the names of the normal group and the outliers of each part, a row of panels each.
        path: PNG to write.
    """
    methods = list(data["seeds"][0])
    figure, panels = _panels(len(pairs), len(methods), width=9.6, height=6.4, share=True)
    for i, names in enumerate(pairs.values()):
        for j, method in enumerate(methods):
            axes = panels[i * len(methods) + j]
            for name, color in zip(names, (_BLUE, _RED), strict=True):
                curves = [seed[method][name] for seed in data["seeds"] if name in seed[method]]
                if curves:
                    _band(axes, curves, label=name, color=color)
            axes.set(title=method, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, fontsize=8)
        panels[i * len(methods)].set_ylabel("mean S-T distance")
    return _save(figure, path)


def draw_ablation(data: Mapping[str, Any], path: Path) -> Path:
    """Mean test value and interval of each row."""
    of = {row.label: row for row in (validate_value(RowSummary, each, "summary") for each in data["summary"])}
    names = [name if name == "kd" else f"tgeo: {name}" for name in data["rows"]]
    rows = [of[label] for label in data["rows"].values()]
    return metric_by_method(rows, data["primary_metric"], path, title="what the ratio network sees", labels=names)


def draw_oversampling(data: Mapping[str, Any], path: Path) -> Path:
    """Test value and recall of the rarest class of each case, a point a seed and a bar for the mean."""
    metric = data["primary_metric"]
    figure, panels = _panels(1, 2, width=10.4, height=4.0)
    cases = [(teacher, student) for teacher in ("plain", "oversampled") for student in ("plain", "oversampled")]
    for axes, key in zip(panels, (metric, None), strict=True):
        for shift, method, color in ((-0.15, "kd", _GREY), (0.15, "tgeo", _BLUE)):
            for x, case in enumerate(cases):
                values = list(_case(data["seeds"], key, method, *case))
                label = method if x == 0 else None
                axes.plot([x + shift] * len(values), values, "o", color=color, alpha=0.6, label=label)
                if values:
                    axes.plot([x + shift - 0.1, x + shift + 0.1], [np.mean(values)] * 2, color=color)
        ticks = [f"teacher {_OVER[teacher]}\nstudent {_OVER[student]}" for teacher, student in cases]
        axes.set_xticks(range(len(cases)), ticks, fontsize=8)
        axes.set_xlabel("training rows oversampled?")
        axes.legend(frameon=False, fontsize=8)
    rarest = ", ".join(dict.fromkeys(str(seed["rarest"]) for seed in data["seeds"]))
    panels[0].set_ylabel(f"test {metric}")
    panels[1].set_ylabel(f"test recall of {rarest}")
    return _save(figure, path)


def draw_cost(data: Mapping[str, Any], path: Path) -> Path:
    """Training time and peak memory over those of kd, a point a seed and a bar for the mean."""
    names = list(data["ratios"])
    figure, panels = _panels(1, 2, width=9.6, height=1.2 + 0.4 * len(names))
    for axes, (key, what) in zip(
        panels, (("seconds", "training time"), ("peak_memory_mb", "peak memory")), strict=True
    ):
        for y, name in enumerate(names):
            values = data["ratios"][name][key]
            color = _BLUE if name.startswith("tgeo") else _GREY
            axes.barh(y, np.mean(values), color=color, alpha=0.5)
            axes.plot(values, [y] * len(values), ".", color="black")
        axes.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel=f"{what} over that of kd", ylim=(len(names) - 0.5, -0.5))
    return _save(figure, path)


def _case(
    seeds: Iterable[Mapping[str, Any]], metric: str | None, method: str, teacher: str, student: str
) -> Iterable[float]:
    """The values of one case that exist; None asks for the recall of each seed's rarest class."""
    wanted = {"method": method, "teacher": teacher, "student": student}
    for seed in seeds:
        for row in seed["rows"]:
            value = row["metrics"].get(metric or f"recall/{seed['rarest']}")
            if wanted.items() <= row.items() and value is not None:
                yield value


def _panels(rows: int, columns: int, *, width: float, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if share else False)
    return figure, list(axes.flat)


def _steps(axes: Axes, histogram: Any, *, label: str, color: str, linestyle: str) -> None:
    """A histogram over [0, 1] as shares of its total; nothing where it is empty."""
    total = histogram.sum()
    if total:
        edges = np.linspace(0, 1, len(histogram) + 1)
        axes.stairs(100 * histogram / total, edges, label=label, color=color, linestyle=linestyle, linewidth=1.6)


def _band(axes: Axes, curves: Sequence[Sequence[float]], *, label: str, color: str) -> None:
    """Mean and range of the seeds' curves; a seed that stopped early ends early."""
    length = max(map(len, curves))
    values = np.array([[*curve, *[np.nan] * (length - len(curve))] for curve in curves])
    x = np.arange(1, length + 1)
    axes.plot(x, np.nanmean(values, axis=0), color=color, label=label, marker=".", markersize=4)
    if len(curves) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return path
