"""Runs of the study: one file per run, TASK/ROW-SEED.json, and teachers/TASK with the teachers that all rows share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diagnosis import Diagnosed
from estimators import WithTeacher
from rows import Row
from switches import METHODS
from tasks import Prepared, prepare

from tgeokd.methods import Method, build_method
from tgeokd.runs.build import build_distiller, build_student, fit
from tgeokd.runs.config import replace
from tgeokd.runs.executors import InProcess, Job, LocalProcesses
from tgeokd.runs.teacher import load_teacher
from tgeokd.teachers.network import as_teacher
from tgeokd.utils.files import write_json

__all__ = ["build", "run_all"]


def build(row: Row) -> Method:
    """A new method of a row."""
    return METHODS[row.method](**row.options) if row.method in METHODS else build_method(row.method, **row.options)


def run_all(
    rows: Mapping[str, Row], names: Iterable[str], seeds: Iterable[int], out: Path, data_dir: str | None, jobs: int
) -> None:
    """Train the rows that have no file yet; one process runs the rows of a task and seed."""

    def prepare_group(name: str, seed: int) -> Any:
        return lambda _: (_run_group, (rows, out, data_dir, name, seed))

    groups = [Job((name, seed), prepare_group(name, seed)) for name in names for seed in seeds]
    executor = InProcess() if jobs == 1 else LocalProcesses(jobs)
    executor.map(
        groups, lambda job, done: print(f"{job.key[0]}, seed {job.key[1]}: {done} of {len(groups)}", flush=True)
    )


def _run_group(rows: Mapping[str, Row], out: Path, data_dir: str | None, name: str, seed: int) -> None:
    files = {label: out / name / f"{label.replace('/', '_')}-{seed}.json" for label in rows}  # labels may have a slash
    missing = {label: file for label, file in files.items() if not file.exists()}
    if missing:
        prepared = prepare(name, seed, data_dir, out / "teachers" / name)
        for label, file in missing.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"task": name, "seed": seed, "label": label, **_run(rows[label], prepared)}, compact=True)


def _run(row: Row, prepared: Prepared) -> dict[str, Any]:
    """Train the student of a row: seconds, metrics on the judged samples, and statistics of its ratios."""
    config, data = prepared.config, prepared.data
    if row.temperature is not None:
        config = replace(config, temperature=row.temperature)
    method = build(row)
    if isinstance(method, Diagnosed) and data.corrupted is not None:
        ids = torch.cat([batch[2] for batch in data.ordered_loader(data.train)])
        method.wrong_ids = ids[data.corrupted]
    teacher = load_teacher(config, data, prepared.teacher)
    if isinstance(method.estimator, WithTeacher):
        method.estimator.teacher = as_teacher(teacher)
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    started = time.perf_counter()
    fit(distiller, config.student, data, seed=config.seed, with_held_out=row.train_on == "train+val")
    seconds = round(time.perf_counter() - started, 2)
    metrics = {key: float(value) for key, value in distiller.evaluate(data.ordered_loader(data.test)).items()}
    diagnosis = method.diagnosis() if isinstance(method, Diagnosed) else {"alpha": distiller.history["alpha_mean"]}
    return {"seconds": seconds, **metrics, **diagnosis}
