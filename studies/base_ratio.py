"""Where the ratio of a certainly correct label should start: TGeoKD(base=...) on development sets.

python studies/base_ratio.py --data-dir data --out runs/base-ratio    # one file per run; continues where it stopped

Scores are on a part of the validation set that neither training nor f_omega uses, never on test data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frozen import _ratios

from tgeokd.data import TaskData
from tgeokd.data.datasets import subset
from tgeokd.data.split import subset as stratified_subset
from tgeokd.methods import build_method
from tgeokd.runs.build import build_distiller, build_student, fit, load_data, use_threads
from tgeokd.runs.config import RunConfig, override, preset
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.utils.files import write_json

SEEDS = range(100, 105)  # used for nothing else
BASES = (0.0, 0.1, 0.2, 0.3, 0.5)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd .3": ("kd", {"alpha": 0.3}),
    "kd .5": ("kd", {"alpha": 0.5}),
    "posterior": ("posterior", {}),
    **{f"base {base}": ("tgeo", {"base": base}) for base in BASES},
}
SETS: dict[str, tuple[str, str, tuple[str, ...], str, int]] = {
    # task, preset, settings, metric, validation samples that are left to the method
    "digits, 30 %": ("digits", "lite", ("data.noise=0.3", "data.held_out=700"), "accuracy", 200),
    "digits, clean": ("digits", "lite", ("data.held_out=700",), "accuracy", 200),
    "adult": ("adult", "lite", (), "auc", 2000),
    "adult, 20 %": ("adult", "lite", ("data.noise=0.2",), "auc", 2000),
    "banking77": ("text", "banking77", ("data.held_out=2000",), "accuracy", 1000),
    "CIFAR-100, 40 %": (
        "cifar100",
        "pretrained",
        ("data.checksum=any", "data.noise=symmetric", "data.noise_rate=0.4", "data.held_out=12000"),
        "accuracy",
        2000,
    ),
}


def main() -> None:
    """Train what has no file yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TGEOKD_DATA"), help="folder of the data (or TGEOKD_DATA)")
    parser.add_argument("--out", type=Path, default=Path("runs/base-ratio"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="SET")
    given = parser.parse_args()
    for name in given.sets:
        for seed in SEEDS:
            run_seed(name, seed, given.out, given.data_dir)
    print(table(given.out))


def run_seed(name: str, seed: int, out: Path, data_dir: str | None) -> None:
    """Train the rows of a set and seed that have no file yet; they share data, teacher and initial student."""
    task, preset_name, settings, metric, held_out = SETS[name]
    files = {row: out / f"{name}-{row}-{seed}.json".replace(" ", "_").replace(",", "") for row in ROWS}
    if all(path.exists() for path in files.values()):
        return
    config = override(preset(task, preset_name), [*settings, f"data_dir={data_dir}", f"seed={seed}"])
    use_threads(config)
    data = development(load_data(config), held_out)
    out.mkdir(parents=True, exist_ok=True)
    teacher = out / f"teacher-{name}-{seed}.safetensors".replace(" ", "_").replace(",", "")
    if not teacher.exists():
        build_teacher(config, data, teacher)
    for row, path in files.items():
        if not path.exists():
            write_json(path, {"set": name, "row": row, "seed": seed, **run_row(row, config, data, teacher, metric)})


def development(data: TaskData, held_out: int) -> TaskData:
    """The task with a part of its validation set, and the rest of that as the test set."""
    target = torch.cat([batch[1] for batch in data.ordered_loader(data.held_out)]).numpy()
    kept = stratified_subset(target, held_out, seed=0)
    rest = np.setdiff1d(np.arange(len(target)), kept)
    return dataclasses.replace(
        data,
        held_out=subset(data.held_out, kept.tolist()),
        test=subset(data.held_out, rest.tolist()),
        test_groups={},
    )


def run_row(row: str, config: RunConfig, data: TaskData, teacher: Path, metric: str) -> dict[str, Any]:
    """Train a row: its score and what its ratios are like."""
    name, options = ROWS[row]
    method = build_method(name, **options)
    loaded = load_teacher(config, data, teacher)
    student = build_student(config, data)
    distiller = build_distiller(student, loaded, method, config, config.student, data, progress=False)
    fit(distiller, config.student, data, seed=config.seed, with_held_out=method.outer is None)
    score = float(distiller.evaluate(data.ordered_loader(data.test))[metric])
    return {"score": 100 * score, **_ratios(distiller, data, loaded)}


def table(out: Path) -> str:
    """Mean score of each row as a difference to ``base 0.0``, with its standard error over the seeds."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    score = {(r["set"], r["row"], r["seed"]): r["score"] for r in records}
    sets = [name for name in SETS if any(r["set"] == name for r in records)]
    lines = ["| row | " + " | ".join(sets) + " |", "| --- |" + " --- |" * len(sets)]
    for row in ROWS:
        cells = []
        for name in sets:
            pairs = [(score.get((name, row, s)), score.get((name, "base 0.0", s))) for s in SEEDS]
            gaps = np.array([a - b for a, b in pairs if a is not None and b is not None])
            cells.append(f"{gaps.mean():+.2f} ± {gaps.std(ddof=1) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
