"""Seconds per training step: our loop beside a loop written by hand, and the learned ratio beside a constant one."""

from __future__ import annotations

import statistics

from harness import Figure, interleaved, ratios, threads
from workloads import METHODS, MLP, RESNET, Workload, distilled, handwritten

__all__ = ["figures", "of_workload"]


def of_workload(work: Workload, runs: int) -> list[Figure]:
    with threads(work.threads):
        values = interleaved(
            {
                "handwritten": handwritten(work),
                **{name: distilled(work, name) for name in METHODS},
                "kd cached": distilled(work, "kd", cached=True),
                "tgeo cached": distilled(work, "tgeo", cached=True),
            },
            runs,
        )
    note = "ms per step: " + ", ".join(f"{k} {1e3 * statistics.median(v):.2f}" for k, v in values.items())

    def figure(name: str, above: str, below: str, limit: float) -> Figure:
        return Figure.of(f"{name} ({work.name})", ratios(values, above, below), limit=limit, note=note)

    return [
        figure("kd step / hand-written plain KD step", "kd", "handwritten", 1.03),
        figure("TGeo default step / kd step, teacher computed", "tgeo", "kd", 1.10),
        figure("TGeo default step / kd step, teacher cached", "tgeo cached", "kd cached", 1.15),
        figure("exact forward every step / kd step", "forward", "kd", 2.8),
    ]


def figures(runs: int) -> list[Figure]:
    """Both workloads."""
    return [*of_workload(RESNET, runs), *of_workload(MLP, 2 * runs)]
