"""Peak memory of a training step, each way in a process of its own.

Counted is what a step adds: the peak of resident memory while three steps run, less what the process held before the first
(interpreter, data, teacher, student). So that a way cannot profit from memory that an earlier one left behind, and so that the
interpreter's few hundred MiB do not make every ratio look like 1.

The figures with a limit are of live memory, as a GPU's allocator would count it: glibc is told (``MALLOC_MMAP_THRESHOLD_``) to
give every larger tensor's memory back when it is freed. With its defaults it keeps freed memory for later in pieces that may
not fit; those figures stand beside, without a limit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import torch
from harness import Figure, threads
from peers import PEERS, Problem
from workloads import METHODS, RESNET, distilled

from tgeokd.utils.memory import PeakMemory

__all__ = ["figures"]

LIVE = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


def measure(what: str) -> float:
    """MiB that steps of a method, or a hypergradient of a peer, add in this process."""
    work = RESNET
    with threads(work.threads):
        if what in METHODS:
            run = distilled(work, what)
        else:
            problem = Problem(work)
            once = PEERS[what](problem)

            def run() -> float:
                for _ in range(3):
                    problem.reset()
                    once()
                return 0.0

        with PeakMemory() as before:  # what importing and building took
            torch.zeros(1)
        with PeakMemory() as peak:
            run()
    return peak.resident_mib - before.resident_mib


def figures(runs: int) -> list[Figure]:
    """Peaks of this package's ways and of TorchOpt, beside each other."""
    return [
        *_of("peak memory", runs, LIVE, limited=True),
        *_of("peak memory, glibc's defaults", runs, {}, limited=False),
    ]


def _of(title: str, runs: int, environment: dict[str, str], *, limited: bool) -> list[Figure]:
    ways = [*METHODS, "tgeokd", "TorchOpt"]
    values: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            command = [sys.executable, __file__, way]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
            )
            values[way].append(json.loads(done.stdout.splitlines()[-1]))
    absolute = ", ".join(f"{way} {statistics.median(mib):.0f}" for way, mib in values.items())
    note = f"what steps add to the process, MiB: {absolute}"

    def figure(name: str, above: str, below: str, limit: float) -> Figure:
        found = [a / b for a, b in zip(values[above], values[below], strict=True)]
        return Figure.of(f"{title}: {name} ({RESNET.name})", found, limit=limit if limited else None, note=note)

    return [
        figure("TGeo default / kd", "tgeo", "kd", 1.10),
        figure("forward / kd", "forward", "kd", 1.35),
        figure("forward / TorchOpt", "tgeokd", "TorchOpt", 0.75),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
