"""Peak memory of training steps, each method in its own process.

A figure counts what steps add: the peak of resident memory during a few steps, minus the memory before the first one
(interpreter, data, teacher, student). Separate processes keep a method from reusing memory that an earlier one left behind.

The figures with a limit count live memory, as a GPU allocator would: ``MALLOC_MMAP_THRESHOLD_`` makes glibc return the memory
of larger tensors when they are freed. By default glibc keeps freed memory in pieces that may not fit later; these figures have
no limit.
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

        with PeakMemory() as before:  # memory of imports and models
            torch.zeros(1)
        with PeakMemory() as peak:
            run()
    return peak.resident_mib - before.resident_mib


def figures(runs: int) -> list[Figure]:
    """Peaks of the package's methods and of TorchOpt."""
    return [
        *_of("peak memory", runs, LIVE, limited=True),
        *_of("peak memory, glibc's defaults", runs, {}, limited=False),
    ]


def _of(title: str, runs: int, environment: dict[str, str], *, limited: bool) -> list[Figure]:
    methods = [*METHODS, "tgeokd", "TorchOpt"]
    values: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(runs):
        for name in methods:
            command = [sys.executable, __file__, name]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
            )
            values[name].append(json.loads(done.stdout.splitlines()[-1]))
    absolute = ", ".join(f"{name} {statistics.median(mib):.0f}" for name, mib in values.items())
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
