"""Seconds per training step: our loop beside a loop written by hand, and the learned ratio beside a constant one."""

from __future__ import annotations

import dataclasses
import statistics

from harness import Figure, interleaved, ratios, threads
from workloads import METHODS, MLP, RESNET, Workload, distilled, handwritten

__all__ = ["figures", "of_workload"]


def of_workload(
    work: Workload, runs: int, *, computed: float | None, cached: float | None, exact: float | None
) -> list[Figure]:
    """Steps of a workload; the limits of TGeo's step relative to kd's, by teacher, None for information."""
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

    def figure(name: str, above: str, below: str, limit: float | None) -> Figure:
        return Figure.of(f"{name} ({work.name})", ratios(values, above, below), limit=limit, note=note)

    return [
        figure("kd step / hand-written plain KD step", "kd", "handwritten", 1.03),
        figure("TGeo default step / kd step, teacher computed", "tgeo", "kd", computed),
        figure("TGeo default step / kd step, teacher cached", "tgeo cached", "kd cached", cached),
        figure("exact forward every step / kd step", "forward", "kd", exact),
    ]


def of_batch_size(size: int, runs: int) -> Figure:
    """TGeo's step relative to kd's on a table with batches of this size."""
    work = dataclasses.replace(MLP, batch_size=size, steps=40)
    with threads(work.threads):
        values = interleaved({name: distilled(work, name) for name in ("kd", "tgeo")}, runs)
    note = "ms per step: " + ", ".join(f"{k} {1e3 * statistics.median(v):.2f}" for k, v in values.items())
    name = f"TGeo default step / kd step, batch {size} ({work.name})"
    return Figure.of(name, ratios(values, "tgeo", "kd"), limit=1.10, note=note)


def figures(runs: int) -> list[Figure]:
    """Conv nets; the MLPs at batch 64, whose ratios are for information, and at the batches of large tables."""
    return [
        *of_workload(RESNET, runs, computed=1.06, cached=1.12, exact=2.8),
        *of_workload(MLP, 2 * runs, computed=None, cached=None, exact=None),
        *(of_batch_size(size, 2 * runs) for size in (1024, 4096)),
    ]
