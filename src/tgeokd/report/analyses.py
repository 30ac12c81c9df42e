"""Figures of the analyses of :mod:`tgeokd.paper`, each drawn from the analysis' data, as PNG."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tgeokd.paper.base import Findings
from tgeokd.paper.cost import COSTS
from tgeokd.paper.oversampling import CASES, RECALL, values
from tgeokd.report import figures
from tgeokd.report.figures import BLUE, GREY, GROUP_STYLE, RATIO_AXIS, RED, new_figure, save
from tgeokd.utils.registry import Registry

FIGURES: Registry[Callable[[Mapping[str, Any], Path], Path | None]] = Registry(
    "figure of an analysis", "tgeokd.report", group="tgeokd.figures"
)
"""By the name of the analysis: a function of its data and the PNG to write."""
_SHADES = ("#08306b", "#2171b5", "#6baed6", "#fd8d3c", "#a63603")  # near to far
_SMALL: dict[str, Any] = {"frameon": False, "fontsize": 8}


def draw_analysis(findings: Findings, folder: Path) -> Path | None:
    """Write ``FOLDER/NAME.png``; None for an analysis without a figure."""
    name = findings.what
    return FIGURES[name](findings.data, folder / f"{name}.png") if name in FIGURES else None


@FIGURES.register("fig1")
def fig1(data: Mapping[str, Any], path: Path) -> Path:
    """Test accuracy by fixed alpha, one line per group of distance, where the teacher is right and where it is wrong."""
    keys = ("count", "correct", "distance_sum")
    count, correct, distance = (np.sum([seed[key] for seed in data["seeds"]], axis=0) for key in keys)
    figure, panels = new_figure(1, 2, 9.6, 5.0)
    for row, (axes, name) in enumerate(zip(panels, ("teacher = label", "teacher ≠ label"), strict=True)):
        for group in range(count.shape[1]):
            n = count[row, group]
            if n:
                label = f"S-T distance {distance[row, group] / n:.2f} (n = {n:.0f})"
                axes.plot(data["alphas"], 100 * correct[:, row, group] / n, "o-", color=_SHADES[group], label=label)
        axes.set(xlabel=f"fixed {RATIO_AXIS}", ylabel="test accuracy, %", title=name)
        if count[row].any():
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, **_SMALL)
    return save(figure, path)


@FIGURES.register("fig3")
def fig3(data: Mapping[str, Any], path: Path) -> Path:
    """Distribution of the learned alpha by group over all seeds, with and without the edge S-T."""
    figure, panels = new_figure(1, 2, 9.6, 4.0, share=True)
    for axes, (edge, seeds) in zip(panels, data["alpha"].items(), strict=True):
        for name in data["groups"]:
            histogram = np.sum([seed[name]["histogram"] for seed in seeds], axis=0)
            label = f"{GROUP_STYLE[name]['label']} (n = {histogram.sum()})"
            _distribution(axes, histogram, **GROUP_STYLE[name] | {"label": label})
        axes.set(title=f"{edge} the edge S-T", xlabel=f"learned {RATIO_AXIS}", xlim=(0, 1))
        axes.legend(**_SMALL)
    panels[0].set_ylabel("share of training samples, %")
    return save(figure, path)


@FIGURES.register("fig4")
def fig4(data: Mapping[str, Any], path: Path) -> Path:
    """Distribution of alpha by group over all seeds; the mean of each seed with the area under the ROC curve."""
    seeds = data["seeds"]
    names = list(dict.fromkeys(name for seed in seeds for name in seed))
    figure, (left, right) = new_figure(1, 2, 11.0, 4.4)
    ticks: list[str] = []
    for i, name in enumerate(names):
        found = [seed[name] for seed in seeds if name in seed]
        color = f"C{i}"
        _distribution(left, np.sum([group["histogram"] for group in found], axis=0), label=name, color=color)
        right.plot([group["mean"] for group in found], [i] * len(found), "o", color=color, alpha=0.6)
        areas = [group["auroc_low"] for group in found if "auroc_low" in group]
        ticks.append(f"{name}\nAUROC of low alpha {np.mean(areas):.2f}" if areas else name)
    left.set(xlabel=f"learned {RATIO_AXIS}", ylabel="share of samples, %", xlim=(0, 1))
    left.legend(**_SMALL)
    right.set_yticks(range(len(names)), ticks, fontsize=8)
    right.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="mean alpha, one point per seed")
    return save(figure, path)


@FIGURES.register("fig5")
def fig5(data: Mapping[str, Any], path: Path) -> Path:
    """Mean distance of student and teacher by epoch, normal samples and outliers; a band shows the range of the seeds."""
    methods = list(data["seeds"][0])
    figure, panels = new_figure(len(data["pairs"]), len(methods), 9.6, 6.4, share=True)
    for i, names in enumerate(data["pairs"].values()):
        for j, method in enumerate(methods):
            axes = panels[i * len(methods) + j]
            for name, color in zip(names, (BLUE, RED), strict=True):
                curves = [seed[method][name] for seed in data["seeds"] if name in seed[method]]
                if curves:
                    length = max(map(len, curves))  # a run with early stopping has fewer epochs
                    padded = [[*curve, *[np.nan] * (length - len(curve))] for curve in curves]
                    figures.plot_range(axes, padded, label=name, color=color)
            axes.set(title=method, xlabel="epoch")
            axes.legend(**_SMALL)
        panels[i * len(methods)].set_ylabel("mean S-T distance")
    return save(figure, path)


@FIGURES.register("alpha-over-epochs")
def alpha_over_epochs(data: Mapping[str, Any], path: Path) -> Path | None:
    """Mean alpha of each group by epoch."""
    histories = [[{"epoch": epoch, "alpha": of["groups"]} for epoch, of in enumerate(seed)] for seed in data["seeds"]]
    return figures.alpha_by_group(histories, path, title=f"learned fusion ratio, {len(histories)} seeds")


@FIGURES.register("ablation")
def ablation(data: Mapping[str, Any], path: Path) -> Path:
    """Mean test value and interval of each row."""
    rows = data["values"]
    title = "features of the ratio network"
    return figures.metric_by_row(rows, data["primary_metric"], path, title=title, highlighted=set(rows) - {"kd"})


@FIGURES.register("oversampling")
def oversampling(data: Mapping[str, Any], path: Path) -> Path:
    """Test value and recall of the rarest class of each case: one point per seed and a line for the mean."""
    shown = {"plain": "no", "oversampled": "yes"}
    figure, panels = new_figure(1, 2, 10.4, 4.0)
    for axes, metric in zip(panels, (data["primary_metric"], RECALL), strict=True):
        for shift, method, color in ((-0.15, "kd", GREY), (0.15, "tgeo", BLUE)):
            for x, case in enumerate(CASES):
                found = [value for value in values(data, metric, method, *case) if value is not None]
                label = method if x == 0 else None
                axes.plot([x + shift] * len(found), found, "o", color=color, alpha=0.6, label=label)
                if found:
                    axes.plot([x + shift - 0.1, x + shift + 0.1], [np.mean(found)] * 2, color=color)
        ticks = [f"teacher {shown[teacher]}\nstudent {shown[student]}" for teacher, student in CASES]
        axes.set_xticks(range(len(CASES)), ticks, fontsize=8)
        axes.set_xlabel("training rows oversampled")
        axes.legend(**_SMALL)
    rarest = ", ".join(dict.fromkeys(str(seed["rarest"]) for seed in data["seeds"]))
    panels[0].set_ylabel(f"test {data['primary_metric']}")
    panels[1].set_ylabel(f"test recall of {rarest}")
    return save(figure, path)


@FIGURES.register("cost")
def cost(data: Mapping[str, Any], path: Path) -> Path:
    """Training time and peak memory relative to kd: one point per seed and a bar for the mean."""
    names = list(data["ratios"])
    figure, panels = new_figure(1, 2, 9.6, 1.2 + 0.4 * len(names))
    for axes, key, what in zip(panels, COSTS, ("training time", "peak memory"), strict=True):
        for y, (name, of) in enumerate(data["ratios"].items()):
            color = BLUE if name in data["learned"] else GREY
            axes.barh(y, np.mean(of[key]), color=color, alpha=0.5)
            axes.plot(of[key], [y] * len(of[key]), ".", color="black")
        axes.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel=f"{what} relative to kd", ylim=(len(names) - 0.5, -0.5))
    return save(figure, path)


def _distribution(axes: Axes, histogram: Any, **style: Any) -> None:
    """A histogram over [0, 1] as shares of its total; nothing where it is empty."""
    total = histogram.sum()
    if total:
        edges = np.linspace(0, 1, len(histogram) + 1)
        axes.stairs(100 * histogram / total, edges, linewidth=1.6, **style)
