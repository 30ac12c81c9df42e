"""All figures of the benchmark in one run: printed, written to benchmarks/results.json and results.md, limits checked.

Run: make bench [DATA=folder], or python benchmarks/bench.py [--only steps,peers] [--runs N] [--data-dir FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cached_epoch
import grid
import loader
import memory
import peers
import scale
import startup
import steps
from harness import Figure

from tgeokd.runs.executors import machine

HERE = Path(__file__).parent


def described() -> dict[str, Any]:
    """The machine, with the versions of the peers."""
    content = machine()
    return {**content, "versions": content["versions"] | {name: version(name) for name in ("torchopt", "higher")}}


def parts(runs: int, data_dir: Path | None) -> dict[str, Callable[[], list[Figure]]]:
    """The parts of the benchmark, by name."""
    return {
        "startup": lambda: startup.figures(runs),
        "steps": lambda: steps.figures(runs),
        "peers": lambda: peers.figures(runs),
        "memory": lambda: memory.figures(min(runs, 3)),
        "cached_epoch": lambda: cached_epoch.figures(min(runs, 3)),
        "scale": lambda: scale.figures(runs),
        "loader": lambda: loader.figures(runs),
        "grid": lambda: grid.figures(runs, data_dir),
    }


def markdown(content: dict[str, Any], figures: list[Figure]) -> str:
    """The page of the results."""
    flat = {**content, **content["versions"]}
    shown = ", ".join(f"{key} {value}" for key, value in flat.items() if value is not None and key != "versions")
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`. Every value is a median over alternating runs (A B A B ...) in one process.",
        "[docs/speed.md](../docs/speed.md) explains the figures.",
        "",
        f"Machine: {shown}.",
        "",
        "| figure | median | range | at most | runs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for f in figures:
        limit = "" if f.limit is None else f"{f.limit:g}" + ("" if f.met else " **missed**")
        lines.append(f"| {f.name} | {f.value:.3g} | {f.low:.3g} to {f.high:.3g} | {limit} | {f.runs} |")
    lines += ["", *(f"- {f.name}: {f.note}" for f in figures if f.note), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="parts to run, separated by commas; nothing is written then")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each measure, and seeds of the grid")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("TGEOKD_DATA"), help="for the grid's second task"
    )
    given = parser.parse_args()
    available = parts(given.runs, given.data_dir)
    chosen = given.only.split(",") if given.only else list(available)
    if unknown := set(chosen) - set(available):
        parser.error(f"unknown {', '.join(sorted(unknown))}; there are {', '.join(available)}")

    figures: list[Figure] = []
    for name in chosen:
        started = time.perf_counter()
        for figure in available[name]():
            figures.append(figure)
            limit = "" if figure.limit is None else f"  at most {figure.limit:g}" + ("" if figure.met else "  MISSED")
            print(f"{figure.name}: {figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g}){limit}", flush=True)
            if figure.note:
                print(f"    {figure.note}", flush=True)
        print(f"  [{name}: {time.perf_counter() - started:.0f} s]", flush=True)

    if not given.only:
        limited, others = (
            [dataclasses.asdict(f) for f in figures if (f.limit is None) == free] for free in (False, True)
        )
        content = {"machine": described(), "figures": limited, "without_limit": others}
        (HERE / "results.json").write_text(json.dumps(content, indent=1) + "\n")
        (HERE / "results.md").write_text(markdown(content["machine"], figures))
    missed = [figure.name for figure in figures if not figure.met]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
