"""From the files of the runs to one file, tables and a figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rows import REFERENCE, Cause
from tasks import TASKS

from tgeokd.runs.statistics import PairedTest, paired

__all__ = ["collect", "figure", "read", "tables"]

DIAGNOSIS = ("alpha_right", "alpha_wrong", "auc_wrong", "spread")

Seeds = dict[str, dict[str, float]]  # by seed: score, alpha, ...
Found = dict[str, dict[str, Seeds]]  # by task and row


def collect(runs: Path, tasks: Sequence[str], labels: Collection[str], path: Path) -> None:
    """Write score and statistics of the ratios by task, row and seed, one line per row."""
    found: Found = {}
    for name in tasks:
        for file in sorted((runs / name).rglob("*.json")):
            run = json.loads(file.read_text())
            if run["label"] in labels:
                row = found.setdefault(name, {}).setdefault(run["label"], {})
                row[str(run["seed"])] = _essence(run, TASKS[name].metric)
    blocks = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(label)}: {json.dumps(rows[label], sort_keys=True)}" for label in sorted(rows))
        + "\n }"
        for name, rows in sorted(found.items())
    ]
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def read(path: Path) -> Found:
    """The content that :func:`collect` wrote."""
    found: Found = json.loads(path.read_text())
    return found


def _essence(run: dict[str, Any], metric: str) -> dict[str, float]:
    last = run["alpha"][-1]  # None for a method without ratios
    kept = {key: run[key] for key in DIAGNOSIS if key in run}
    return {"score": round(run[metric], 6)} | ({} if last is None else {"alpha": round(last, 3)}) | kept


def tables(causes: Sequence[Cause], found: Found) -> str:
    """One markdown table per cause, scores in points (x 100)."""
    names = [name for name in TASKS if name in found]
    head = ["row"]
    for name in names:
        head += [f"{name}: {TASKS[name].metric}", f"against {REFERENCE}", "alpha at the end", "AUC, wrong labels"]
    sections = []
    for cause in causes:
        lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
        lines += [[label, *_cells(found, names, label)] for label in (REFERENCE, *cause.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        sections.append(f"## {cause.title}\n\nExpected: {cause.expected}\n\n{table}\n")
    return "\n".join(sections)


def _cells(found: Found, names: Sequence[str], label: str) -> list[str]:
    cells = []
    for name in names:
        seeds = found[name].get(label, {})
        cells += [
            _mean(seeds, "score", 100),
            "" if label == REFERENCE else _interval(found[name], label),
            _mean(seeds, "alpha"),
            _mean(seeds, "auc_wrong"),
        ]
    return cells


def _mean(seeds: Seeds, key: str, times: float = 1.0) -> str:
    values = [run[key] for run in seeds.values() if key in run]
    return f"{times * statistics.fmean(values):.2f}" if values else "-"


def _interval(rows: dict[str, Seeds], label: str) -> str:
    difference = _difference(rows, label)
    if difference is None:
        return "-"
    fewer = f" (n = {difference.n})" if difference.n < len(rows[REFERENCE]) else ""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.2f}{fewer}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]{fewer}"


def _difference(rows: dict[str, Seeds], label: str) -> PairedTest | None:
    """Row minus reference in points, over the seeds that both have; None without any."""
    row, reference = rows.get(label, {}), rows.get(REFERENCE, {})
    shared = [100 * (row[seed]["score"] - reference[seed]["score"]) for seed in row if seed in reference]
    return paired(shared) if shared else None


def figure(causes: Sequence[Cause], found: Found, path: Path) -> None:
    """Differences to the reference with their 95 % intervals: one panel per cause and task, one scale per task."""
    names = [name for name in TASKS if name in found]
    heights = [len(cause.rows) + 1.2 for cause in causes]
    drawing = Figure(figsize=(8.2, 0.21 * sum(heights) + 0.6), layout="constrained")
    grid = drawing.subplots(len(causes), len(names), sharex="col", sharey="row", height_ratios=heights, squeeze=False)
    for cause, panels in zip(causes, grid, strict=True):
        labels = list(cause.rows)
        for name, axes in zip(names, panels, strict=True):
            axes.axvline(0, color="black", linewidth=0.6)
            for y, label in enumerate(labels):
                difference = _difference(found[name], label)
                if difference is None:
                    continue
                sure = difference.low is not None and not difference.low <= 0 <= difference.high
                color = "#8a8a8a" if not sure else "#1b6ca8" if difference.mean > 0 else "#c8553d"
                if difference.low is not None:
                    axes.plot([difference.low, difference.high], [y, y], color=color, linewidth=1.6)
                axes.plot(difference.mean, y, "o", color=color, markersize=4)
            axes.set_yticks(range(len(labels)), labels, fontsize=8)
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.tick_params(axis="x", labelsize=8)
            axes.grid(axis="x", linewidth=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_title(cause.title, loc="left", fontsize=9, fontweight="bold")
    for name, axes in zip(names, grid[-1], strict=True):
        axes.set_xlabel(f"{name}: {TASKS[name].metric} minus that of {REFERENCE}, points", fontsize=9)
    drawing.suptitle("Mean and 95 % interval over the seeds; grey where the interval covers 0", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)
