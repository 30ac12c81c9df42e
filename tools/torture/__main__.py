"""``python -m tools.torture --seconds 900 --seed 0``: prints the table of docs/reliability.md; 1 where anything failed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import tgeokd.report.html
import tgeokd.runs.compare
import tgeokd.runs.executors
from tools.torture import damage, endurance, interruptions, malicious, resumes
from tools.torture.report import Row

# share of the time, by name
PARTS: dict[str, tuple[float, Callable[[float, int, interruptions.Undisturbed], Row]]] = {
    "kills": (0.2, interruptions.kills),
    "calls": (0.15, interruptions.kills_at_calls),
    "signals": (0.15, interruptions.signals),
    "disk": (0.15, interruptions.full_disk),
    "small disks": (0.05, interruptions.small_disks),
    "resumes": (0.05, resumes.resumes),
    "locks": (0.02, endurance.locks),
    "damage": (0.08, damage.damage),
    "malicious": (0.07, malicious.malicious),
    "endurance": (0.1, endurance.endurance),
}


def main() -> int:
    """Try the chosen parts and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=900, help="of all parts together, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS])
    chosen = parser.parse_args()
    prepare()
    undisturbed = interruptions.Undisturbed()
    total = sum(PARTS[name][0] for name in chosen.only)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        futures = [
            pool.submit(PARTS[name][1], 2 * chosen.seconds * PARTS[name][0] / total, chosen.seed, undisturbed)
            for name in chosen.only
        ]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(rows[-1], flush=True)
    return int(any(row.faults for row in rows))


def prepare() -> None:
    """One thread and one process, so that children can be forked; everything imported, so that they start at once."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    tgeokd.runs.compare.LocalProcesses = lambda jobs: tgeokd.runs.executors.InProcess()  # type: ignore[assignment, misc]
    import sklearn.datasets  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
