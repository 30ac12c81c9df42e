"""Start-up time of the command line: wall times of processes, beside that of an interpreter that does nothing.

Run: python benchmarks/startup.py [--runs N] [--json FILE], or python benchmarks/bench.py --only startup
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Figure, interleaved, ratios, seconds_of

COMMANDS = {  # with limits in seconds
    "--version": 0.5,
    "--help": 0.5,
    "distill --help": 1.0,
}


def measure(*argv: str) -> float:
    """Seconds of a Python process outside the repository."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds_of(
            lambda: subprocess.run([sys.executable, *argv], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        )


def figures(runs: int) -> list[Figure]:
    """Seconds and ratio of each command."""
    measures = {"pass": lambda: measure("-c", "pass")}
    measures |= {name: lambda name=name: measure("-m", "tgeokd", *name.split()) for name in COMMANDS}
    values = interleaved(measures, runs)
    found = [Figure.of("seconds of python -c pass", values["pass"])]
    for name, limit in COMMANDS.items():
        found.append(Figure.of(f"seconds of tgeokd {name}", values[name], limit=limit))
        found.append(Figure.of(f"tgeokd {name} / python -c pass", ratios(values, name, "pass")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    found = figures(given.runs)
    print(f"{'figure':<45}{'median':>8}{'low':>8}{'high':>8}{'at most':>9}")
    for f in found:
        limit = "" if f.limit is None else f"{f.limit:g}"
        print(f"{f.name:<45}{f.value:>8.3f}{f.low:>8.3f}{f.high:>8.3f}{limit:>9}" + ("" if f.met else "  missed"))
    if given.json is not None:
        given.json.write_text(json.dumps({"figures": [dataclasses.asdict(f) for f in found]}, indent=1) + "\n")
    if not all(f.met for f in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
