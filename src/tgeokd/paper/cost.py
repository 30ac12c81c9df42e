"""`cost`: time and memory of the learned ratio, relative to plain distillation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.paper.base import Findings
from tgeokd.paper.rows import compared, gain, shared_facts
from tgeokd.paper.wording import difference, gained, mean, shown, verdict
from tgeokd.report.analyses import draw_cost
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.statistics import PairedTest

__all__ = ["ROWS", "cost", "lines"]

ROWS = {
    "ce": MethodSpec("ce"),
    "kd": MethodSpec("kd", {"alpha": 0.5}),
    "rw": MethodSpec("rw"),
    "tgeo": MethodSpec("tgeo"),
    "tgeo, forward": MethodSpec("tgeo", {"hypergradient": "forward"}),
    "tgeo, last layer": MethodSpec("tgeo", {"hypergradient": "last_layer"}),
    "tgeo, every 4th step": MethodSpec("tgeo", {"every": 4}),
    "tgeo, finite difference": MethodSpec("tgeo", {"hypergradient": "finite_difference"}),
}


def cost(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Seconds of the student's training and peak memory of each row over those of ``kd`` under the same seed.

    One process by default, unlike the other analyses: runs side by side take each other's cores and their times mean
    nothing. The peak of memory is the process's resident memory on a CPU, libraries and data included, and what PyTorch has
    allocated on CUDA; on a CPU it therefore says little of small models. Epochs are the same for all rows unless the recipe
    stops early.
    """
    results = compared(config, list(ROWS.values()), seeds, out, jobs or 1)
    data = {
        "rows": {name: entry.label for name, entry in ROWS.items()},
        "processes": jobs or 1,
        **shared_facts(results),
    }
    data["ratios"] = {name: {key: ratios(data, name, key) for key in ("seconds", "peak_memory_mb")} for name in ROWS}
    return Findings(data, lines(data), partial(draw_cost, data))


def ratios(data: dict[str, Any], name: str, key: str) -> list[float]:
    """A row's number over that of ``kd``, one a seed."""
    of = {
        label: {r["seed"]: r[key] for r in data["runs"] if r.get("row", r["method"]) == label}
        for label in data["rows"].values()
    }
    own, kd = of[data["rows"][name]], of[data["rows"]["kd"]]
    return [value / kd[seed] for seed, value in own.items()]


def _times(values: Sequence[float]) -> str:
    d: PairedTest | None = difference(values)
    if d is None or d.low is None or d.high is None:
        return f"{shown(mean(values))} x (no interval)"
    return f"{d.mean:.2f} x (95 % interval {d.low:.2f} to {d.high:.2f})"


def _all(data: dict[str, Any], key: str) -> str:
    others = [name for name in data["rows"] if name != "kd"]
    return ", ".join(f"{name} {_times(data['ratios'][name][key])}" for name in others)


def lines(data: dict[str, Any]) -> list[str]:
    """Time; memory; what the cheaper ways cost in the primary metric."""
    n, metric = data["processes"], data["primary_metric"]
    how = "one run at a time" if n == 1 else f"{n} runs at a time, which disturb each other's times"
    cheaper = [name for name in data["rows"] if name.startswith("tgeo,")]
    parts = []
    for name in cheaper:
        d = gain(data, data["rows"][name], data["rows"]["tgeo"])
        parts.append(f"{name} {gained(d, metric)}, {verdict(d, 'better', 'worse')}")
    return [
        f"Training time over kd's ({how}): {_all(data, 'seconds')}.",
        f"Peak memory over kd's: {_all(data, 'peak_memory_mb')}.",
        f"Test {metric} less that of tgeo as it is by default: {'; '.join(parts)}.",
    ]
