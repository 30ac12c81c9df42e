"""Peak memory of encoding generated click logs of N and 10 N rows, which must not grow with the file.

    python benchmarks/criteo_memory.py [--rows 1000000] [--folder DIR]

Needs about 4.5 kB of disk for every row of N. Linux only: the peak is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def memory(name: str) -> float:
    """An entry of /proc/self/status in MB: VmRSS is the present memory, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def measure(rows: int, folder: Path) -> dict[str, float]:
    from tgeokd.data.tasks.criteo.generator import generate
    from tgeokd.data.tasks.criteo.store import StoreSettings, open_store

    path = folder / f"{rows}.txt"
    start = time.perf_counter()
    if not path.exists():
        # in another process, so that its memory is not counted
        subprocess.run([sys.executable, __file__, "--generate", str(rows), "--folder", str(folder)], check=True)
    generating = time.perf_counter() - start
    small = folder / "small.txt"
    generate(small, 2000)
    open_store(small, StoreSettings(), folder / "cache")  # so that lazy imports are not counted
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = memory("VmRSS")
    start = time.perf_counter()
    store = open_store(path, StoreSettings(), folder / "cache")
    return {
        "rows": rows,
        "file MB": path.stat().st_size / 2**20,
        "peak MB": memory("VmHWM") - before,
        "before MB": before,
        "generating s": generating,
        "encoding s": time.perf_counter() - start,
        "codes": sum(store.encoder.inputs.categories),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        from tgeokd.data.tasks.criteo.generator import generate

        generate(given.folder / f"{given.generate}.txt", given.generate)
    elif given.measure:
        print(json.dumps(measure(given.measure, given.folder)))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for rows in (given.rows, 10 * given.rows):
                command = [sys.executable, __file__, "--measure", str(rows), "--folder", folder]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print("  ".join(f"{name} {value:,.0f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
