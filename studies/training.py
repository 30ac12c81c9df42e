"""Runs of a study: a file each, TASK/ROW-SEED.json, and teachers/TASK with the teacher that the rows of a seed share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from switches import Diagnosed, Oracle, Variant
from tasks import Prepared, prepare

from tgeokd.methods import Method, build_method
from tgeokd.runs.build import build_distiller, build_student, fit
from tgeokd.runs.config import replace
from tgeokd.runs.executors import worker_pool
from tgeokd.runs.results import TrainOn
from tgeokd.runs.teacher import load_teacher
from tgeokd.utils.files import RunFolder

__all__ = ["Row", "run_all", "variant"]


@dataclass(frozen=True)
class Row:
    """A row of the study: a method with its options, ``variant`` and ``oracle`` being those of switches.py.

    Attributes:
        method: its name.
        options: of the method.
        train_on: whether the student trains on the held-out samples too, for methods without an outer problem.
        temperature: of the teacher term; None for the preset's.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "train"
    temperature: float | None = None

    def build(self) -> Method:
        """The method, new."""
        own: dict[str, type[Method]] = {"variant": Variant, "oracle": Oracle}
        return own[self.method](**self.options) if self.method in own else build_method(self.method, **self.options)


def variant(*, temperature: float | None = None, **options: Any) -> Row:
    """The method with some switches off their defaults."""
    return Row("variant", options, temperature=temperature)


def run_all(
    rows: Mapping[str, Row], names: Iterable[str], seeds: Iterable[int], out: Path, data_dir: str | None, jobs: int
) -> Iterator[str]:
    """Do the runs that have no file yet; a process takes the rows of a task and seed together. Yields what is finished."""
    groups = [(name, seed) for name in names for seed in seeds]
    with worker_pool(jobs, len(groups)) as pool:
        counts = pool.map(partial(_run_group, rows, out, data_dir), groups)
        for (name, seed), count in zip(groups, counts, strict=True):
            yield f"{name}, seed {seed}: {count} new runs"


def _run_group(rows: Mapping[str, Row], out: Path, data_dir: str | None, group: tuple[str, int]) -> int:
    name, seed = group
    folder = RunFolder(out / name)
    files = {label: f"{label.replace('/', '_')}-{seed}.json" for label in rows}  # a label may have a slash
    missing = {label: file for label, file in files.items() if not (folder.path / file).exists()}
    if missing:
        prepared = prepare(name, seed, data_dir, out / "teachers" / name)
        for label, file in missing.items():
            result = {"task": name, "seed": seed, "label": label, **_run(rows[label], prepared)}
            folder.write_json(file, result, compact=True)
    return len(missing)


def _run(row: Row, prepared: Prepared) -> dict[str, Any]:
    """Train a row's student: its seconds, its metrics on what is judged on, and what its ratios were."""
    config, data = prepared.config, prepared.data
    if row.temperature is not None:
        config = replace(config, temperature=row.temperature)
    method = row.build()
    if isinstance(method, Diagnosed) and data.corrupted is not None:
        ids = torch.cat([batch[2] for batch in data.ordered_loader(data.train)])
        method.wrong_ids = ids[data.corrupted]
    teacher = load_teacher(config, data, prepared.teacher)
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    started = time.perf_counter()
    fit(distiller, config.student, data, seed=config.seed, with_held_out=row.train_on == "train+val")
    seconds = round(time.perf_counter() - started, 2)
    metrics = {key: float(value) for key, value in distiller.evaluate(data.ordered_loader(data.test)).items()}
    diagnosis = method.diagnosis() if isinstance(method, Diagnosed) else {"alpha": distiller.history["alpha_mean"]}
    return {"seconds": seconds, **metrics, **diagnosis}
