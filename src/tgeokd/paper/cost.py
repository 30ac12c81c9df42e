"""`cost`: time and memory of the learned ratio, relative to plain distillation."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tgeokd.paper import ANALYSES
from tgeokd.paper.base import KD, TGEO, Differences
from tgeokd.paper.comparison import ComparisonAnalysis, gain, gain_text
from tgeokd.paper.formatting import difference, mean_text
from tgeokd.runs.config import RunConfig
from tgeokd.runs.results import MethodSpec, RunRecord

COSTS = ("seconds", "peak_memory_mb")


def _tgeo(hypergradient: str, interval: int) -> MethodSpec:
    return MethodSpec("tgeo", {"hypergradient": hypergradient, "update_interval": interval})


VARIANTS = {
    "tgeo, last layer, every step": _tgeo("last_layer", 1),
    "tgeo, exact, every step": _tgeo("exact", 1),
    "tgeo, exact, every 4th step": _tgeo("exact", 4),
    "tgeo, finite differences, every step": _tgeo("finite_difference", 1),
    "tgeo, as published": MethodSpec("tgeo", {"paper": True}),
}
"""Compared with the default of ``tgeo``: the last layer in every 4th step, where the student ends in a linear layer."""


@ANALYSES.register("cost")
class Cost(ComparisonAnalysis):
    """Seconds of the student's training and peak memory of each row, divided by those of ``kd`` under the same seed.

    The peak is the resident memory of the process on a CPU, the memory allocated by PyTorch on CUDA. All rows train for the
    same number of epochs unless the recipe uses early stopping.
    """

    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # time and memory do not depend on label noise
    processes = 1  # simultaneous runs share the cores
    rows: ClassVar = {"ce": MethodSpec("ce"), "kd": KD, "rw": MethodSpec("rw"), "tgeo": TGEO, **VARIANTS}

    def measure(self, config: RunConfig, seeds: Sequence[int], out: Path, processes: int | None) -> dict[str, Any]:
        """The comparison, and the number of simultaneous runs."""
        return {"processes": processes, **super().measure(config, seeds, out, processes)}

    def collect(self, runs: Mapping[str, Sequence[RunRecord]], folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """Each row's seconds and memory over those of kd, one ratio per seed."""
        learned = [name for name, entry in self.rows.items() if entry.method == TGEO.method]
        ratios: dict[str, dict[str, list[float]]] = {name: {} for name in self.rows}
        for name, key in itertools.product(self.rows, COSTS):
            pairs = zip(runs[name], runs["kd"], strict=True)
            ratios[name][key] = [getattr(own, key) / getattr(kd, key) for own, kd in pairs]
        return {"ratios": ratios, "learned": learned}

    def differences(self, data: dict[str, Any]) -> Differences:
        """The gain of each variant over the default of tgeo."""
        return {f"{name} over tgeo": gain(data, name, "tgeo") for name in VARIANTS}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Time; memory; the effect of the variants on the primary metric."""
        n, metric = data["processes"], data["primary_metric"]
        how = "one run at a time" if n == 1 else f"{n} simultaneous runs, which slow each other down"
        time, memory = (
            "; ".join(f"{name} {_times(of[key])}" for name, of in data["ratios"].items() if name != "kd")
            for key in COSTS
        )
        gains = "; ".join(f"{name} {gain_text(differences[f'{name} over tgeo'], metric)}" for name in VARIANTS)
        return [
            f"Training time relative to kd ({how}): {time}.",
            f"Peak memory relative to kd: {memory}.",
            f"Test {metric} compared with the default of tgeo: {gains}.",
        ]


def _times(values: Sequence[float]) -> str:
    d = difference(values)
    if d is None or d.low is None or d.high is None:
        return f"{mean_text(values)} x (no interval)"
    return f"{d.mean:.2f} x (95 % interval {d.low:.2f} to {d.high:.2f})"
