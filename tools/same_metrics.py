"""Check that a change left all metrics as they were: run the same comparisons before and after it, and compare.

    python tools/same_metrics.py run BEFORE --data-dir DATA     # with the code before the change
    python tools/same_metrics.py run AFTER --data-dir DATA      # with the code after it, on the same machine
    python tools/same_metrics.py diff BEFORE AFTER

``run`` writes the demo and four small comparisons. ``diff`` compares every metric of every row and seed, and every number of
every epoch, bit for bit. It also reads results of earlier versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EVERY_ROW = "ce,kd:alpha=0.5,kd,anl,ada,wls,rw,dkd,ce@train+val,kd:alpha=0.5@train+val,tgeo,tgeo:outer=holdout"
COMPARISONS = {
    "demo": "demo --seeds 5",
    "adult": f"compare adult --methods {EVERY_ROW},tgeo:paper=True --seeds 2 --set data.noise=0.2",
    "hil": f"compare hil --methods {EVERY_ROW} --seeds 2",
    "nsl_kdd": f"compare nsl_kdd --methods {EVERY_ROW} --seeds 1",
    "cifar100": (
        "compare cifar100 --methods wls,tgeo,tgeo:outer=holdout:hypergradient=exact --seeds 1 --set data.checksum=any"
        " --set data.noise=symmetric --set data.noise_rate=0.4 --set teacher_cache={} --set student.epochs=3"
        " --set teacher.epochs=3"
    ),
}
RENAMED = {"every": "update_interval", "average": "ema_decay", "fixed_length": "project_out_step_length"}
NOT_COMPARED = {"seconds"}  # of an epoch


def run(out: Path, data_dir: Path, only: list[str]) -> None:
    """Run the comparisons that have no results yet."""
    for name in only or COMPARISONS:
        folder = out / name
        if not (folder / "results.json").exists():
            command = [
                "-c",
                "from tgeokd.cli.main import main; main()",
                *COMPARISONS[name].split(),
                "--out",
                str(folder),
            ]
            data = [] if name == "demo" else ["--data-dir", str(data_dir)]
            subprocess.run([sys.executable, *command, *data], check=True)


def row_key(found: dict[str, Any]) -> str:
    """A row of any version of results.json: method, options under today's names, training samples."""
    if "options" in found:
        options = {RENAMED.get(key, key): value for key, value in found["options"].items()}
        shown = [f"{key}={value}" for key, value in options.items()]
        return " ".join([found["method"], *shown, *([found["train_on"]] if found["train_on"] != "train" else [])])
    method, _, rest = found["method"].partition(" (")  # versions before 0.2 kept only a label
    parts = [part.partition("=") for part in rest.rstrip(")").split(", ")] if rest else []
    return " ".join([method, *(f"{RENAMED.get(key, key)}{equals}{value}" for key, equals, value in parts)])


def metrics_of(folder: Path) -> dict[str, dict[str, float]]:
    """Metrics by variant of the data, row and seed."""
    content = json.loads((folder / "results.json").read_text())
    found = {}
    for one in content["runs"]:
        variant = one["variant"] if "variant" in one else one["setting"]
        found[f"{variant} / {row_key(one)} / seed {one['seed']}"] = one["metrics"]
    return found


def epochs_of(folder: Path) -> dict[str, str]:
    """The records of all epochs of each run, by its folder."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in record.items() if key not in NOT_COMPARED} for record in records]
        found[str(path.parent.relative_to(folder))] = json.dumps(kept, sort_keys=True)
    return found


def diff(before: Path, after: Path) -> int:
    """Print what differs; returns the number of differences."""
    different = compared = 0
    for name in COMPARISONS:
        if not all((side / name / "results.json").exists() for side in (before, after)):
            print(f"{name}: not run on both sides")
            different += 1
            continue
        old, new = metrics_of(before / name), metrics_of(after / name)
        if old.keys() != new.keys():
            print(
                f"{name}: only before {sorted(old.keys() - new.keys())}, only after {sorted(new.keys() - old.keys())}"
            )
            different += 1
        for key in old.keys() & new.keys():
            compared += len(old[key])
            for metric in old[key].keys() | new[key].keys():
                if old[key].get(metric) != new[key].get(metric):
                    print(f"{name}: {key}: {metric} {old[key].get(metric)} -> {new[key].get(metric)}")
                    different += 1
        # Folders of runs may be renamed, so runs are compared by content.
        old_runs, new_runs = epochs_of(before / name), epochs_of(after / name)
        compared += len(old_runs)
        gone = [run for run, records in old_runs.items() if records not in new_runs.values()]
        if sorted(old_runs.values()) != sorted(new_runs.values()):
            print(f"{name}: the epochs of {len(gone)} of {len(old_runs)} runs differ: {', '.join(gone[:5])}")
            different += max(1, len(gone))
    print(f"{compared} metrics and runs compared, {different} different")
    return different


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--data-dir", type=Path, required=True)
    running.add_argument("--only", nargs="*", default=[], choices=list(COMPARISONS))
    comparing = commands.add_parser("diff")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.out, arguments.data_dir, arguments.only)
    else:
        sys.exit(1 if diff(arguments.before, arguments.after) else 0)


if __name__ == "__main__":
    main()
