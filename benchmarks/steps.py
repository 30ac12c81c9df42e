"""Seconds a training step: our loop beside the loop people write, and the learned ratio beside a constant one."""

from __future__ import annotations

import statistics

from harness import Figure, interleaved, ratios, threads
from workloads import ALPHA, MLP, RESNET, Workload, distilled, handwritten

from tgeokd import TGeoKD, VanillaKD
from tgeokd.methods import Method

__all__ = ["figures"]


def _kd() -> Method:
    return VanillaKD(alpha=ALPHA)


def _forward_every_step(work: Workload) -> Method:
    return TGeoKD(hypergradient="forward", every=1, outer_batch_size=work.batch_size)


def _of(work: Workload, runs: int) -> list[Figure]:
    with threads(work.threads):
        values = interleaved(
            {
                "handwritten": handwritten(work),
                "kd": distilled(work, _kd),
                "tgeo": distilled(work, TGeoKD),
                "forward": distilled(work, lambda: _forward_every_step(work)),
                "kd cached": distilled(work, _kd, cached=True),
                "tgeo cached": distilled(work, TGeoKD, cached=True),
            },
            runs,
        )
    note = "ms a step: " + ", ".join(f"{k} {1e3 * statistics.median(v):.2f}" for k, v in values.items())

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
    return [*_of(RESNET, runs), *_of(MLP, 2 * runs)]
