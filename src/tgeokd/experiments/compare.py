"""Methods side by side: for each seed the same split, teacher, initial student and budget."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import torch
import yaml

from tgeokd.errors import InputError
from tgeokd.experiments.build import load_data
from tgeokd.experiments.config import RunConfig, TrainOn, preset, presets
from tgeokd.experiments.published import claimed
from tgeokd.experiments.run import RunResult, Score, check, run, trial
from tgeokd.experiments.search import Trial, trials
from tgeokd.experiments.statistics import paired_table, relative_improvement
from tgeokd.experiments.teacher import make_teacher
from tgeokd.metrics import higher_is_better
from tgeokd.runfolder import RunFolder, slug

__all__ = ["TUNING_SEED", "Entry", "Setting", "compare", "parse_entry", "summarise"]

TUNING_SEED = 1_000
"""Seed of the trials of hyper-parameters: its split and weights are none of those that are reported."""


@dataclass(frozen=True)
class Entry:
    """A row of a comparison: a method with options, and the samples it trains on."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "train"

    @property
    def label(self) -> str:
        """How the row is called in tables and results."""
        shown = [f"{key}={value}" for key, value in self.options.items()]
        if self.train_on != "train":
            shown.append(self.train_on)
        return f"{self.method} ({', '.join(shown)})" if shown else self.method

    def apply(self, config: RunConfig) -> RunConfig:
        """The run's config with this row's method; the config's own method keeps the options it has there."""
        own = config.options if self.method == config.method else {}
        return dataclasses.replace(config, method=self.method, options={**own, **self.options}, train_on=self.train_on)


@dataclass(frozen=True)
class Setting:
    """A variant of the task's data that all rows are run in."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)


def parse_entry(text: str) -> Entry:
    """A row from ``METHOD[:key=value...][@train+val]``, for example ``kd:alpha=0.5`` or ``tgeo:outer=union``."""
    rest, _, train_on = text.strip().partition("@")
    method, *settings = rest.split(":")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"an option of a method is written method:key=value, not {text!r}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"the value of {key!r} in {text.strip()!r} is not YAML") from error
    if train_on not in ("", *get_args(TrainOn)):
        raise InputError(f"{text!r} must end in @train or @train+val, if in anything after @")
    return Entry(method, options, "train+val" if train_on == "train+val" else "train")


def compare(
    config: RunConfig,
    entries: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
    *,
    settings: Sequence[Setting] = (Setting("default"),),
    tune: int = 0,
    jobs: int | None = None,
    resume: bool = False,
    on_event: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> dict[str, Any]:
    """Run every row in every setting for every seed, in parallel processes, and write ``results.json``.

    Args:
        config: what all runs share; its method and options are replaced by each row's.
        entries: the rows.
        seeds: one run each.
        out: folder of the comparison; each run's files lie in ``out/SETTING/ROW/seed-N``.
        settings: variants of the data.
        tune: trials of hyper-parameters a row and setting, judged on held-out samples under a seed of their own; the best
            choice is then used for all seeds. 0 takes the methods' defaults.
        jobs: processes; by default one a core.
        resume: finish the comparison in ``out``; a finished run is not run again.
        on_event: called with a line of text, how many trainings are done, and how many there will be.

    Returns:
        The content of ``results.json``.
    """
    for what, names in (
        ("rows", [slug(entry.label) for entry in entries]),
        ("settings", [slug(setting.name) for setting in settings]),
        ("seeds", [str(seed) for seed in seeds]),
    ):
        if len(set(names)) < len(names):
            raise InputError(f"two {what} of the comparison are the same: {', '.join(names)}")
    if not entries or not seeds:
        raise InputError("a comparison needs at least one method and one seed")
    if tune < 0:
        raise InputError(f"tune must be >= 0 trials, not {tune}")
    if tune and TUNING_SEED in seeds:
        raise InputError(f"seed {TUNING_SEED} is that of the trials and cannot be reported as well")
    for setting in settings:
        first = dataclasses.replace(config, data={**config.data, **setting.data}, seed=seeds[0])
        data = load_data(first)
        for entry in entries:
            check(entry.apply(first), data)
    plan = _Plan(config, entries, seeds, settings, out, tune, data.metrics.primary)
    for row in plan.rows if tune else ():
        plan.trials(row)  # too many of them are refused before anything is written
    folder = _open(plan, resume=resume)
    started = time.perf_counter()
    records = _run_all(plan, jobs, on_event)
    content = {
        "task": config.task,
        "runs": records.runs,
        "summary": summarise(records.runs, records.tuning),
        "paired": paired_table(records.runs, plan.metric),
        "primary_metric": plan.metric,
        "teachers": records.teachers,
        "tuning": records.tuning,
        "claimed": _claims(config, entries, plan.metric),
        "data": data.notes,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    folder.write_json("results.json", content)
    return content


def _claims(config: RunConfig, entries: Iterable[Entry], metric: str) -> dict[str, dict[str, Any]]:
    """What is published for each row, where the data are a full recipe's (a ``paper`` preset's) without a change."""
    full = (preset(config.task, name).data for name in presets(config.task) if name.startswith("paper"))
    if config.data not in full:
        return {}
    models = config.teacher.model, config.student.model
    found = {e.label: claimed(config.task, *models, e.method, e.options, metric=metric) for e in entries}
    return {label: dataclasses.asdict(entry) for label, entry in found.items() if entry is not None}


def machine() -> dict[str, Any]:
    """What the numbers were made with."""
    packages = ("tgeokd", "torch", "numpy", "scikit-learn", "torchvision", "transformers", "polars", "lightgbm")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": cores(), "processor": platform.machine(), "gpu": gpu, "versions": versions}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Plan:
    """What is to be run, and where its files lie."""

    shared: RunConfig
    entries: Sequence[Entry]
    seeds: Sequence[int]
    settings: Sequence[Setting]
    out: Path
    tune: int
    metric: str

    def config(self, setting: str, seed: int) -> RunConfig:
        (data,) = (each.data for each in self.settings if each.name == setting)
        return dataclasses.replace(self.shared, data={**self.shared.data, **data}, seed=seed)

    def entry(self, row: str) -> Entry:
        return next(entry for entry in self.entries if entry.label == row)

    @property
    def rows(self) -> list[str]:
        return [entry.label for entry in self.entries]

    def teacher_path(self, setting: str, seed: int) -> Path:
        return self.out / slug(setting) / "teacher" / f"seed-{seed}.safetensors"

    def run_path(self, setting: str, row: str, seed: int) -> Path:
        return self.out / slug(setting) / slug(row) / f"seed-{seed}"

    def trial_path(self, setting: str, row: str, k: int) -> Path:
        return self.out / slug(setting) / slug(row) / f"trial-{k}.json"

    def trials(self, row: str) -> list[Trial]:
        entry = self.entry(row)
        return trials(entry.method, entry.apply(self.shared).options, self.tune, TUNING_SEED)

    @property
    def total(self) -> int:
        """Trainings, teachers' included."""
        tuning = self.tune * len(self.entries) + (1 if self.tune else 0)
        return len(self.settings) * (len(self.seeds) * (1 + len(self.entries)) + tuning)


@dataclass
class _Records:
    """What came of it, in the order of the plan."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    teachers: list[dict[str, Any]] = field(default_factory=list)
    tuning: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """One training: a teacher (no row), a trial (with its number) or a run."""

    setting: str
    seed: int
    row: str | None = None
    trial: int | None = None

    def __str__(self) -> str:
        what = self.row or "teacher"
        which = f"seed {self.seed}" if self.trial is None else f"trial {self.trial + 1}"
        return f"{what}, {self.setting}, {which}"


class _Schedule:
    """Which trainings can start: a run as soon as its teacher is there and its hyper-parameters are chosen."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.results: dict[_Job, Any] = {}
        self.chosen: dict[tuple[str, str], Trial] = {}

    def first(self) -> list[_Job]:
        """The teachers; those that trials wait for come first."""
        seeds = [*([TUNING_SEED] if self.plan.tune else []), *self.plan.seeds]
        return [_Job(setting.name, seed) for seed in seeds for setting in self.plan.settings]

    def after(self, job: _Job, result: Any) -> list[_Job]:
        """Take note of a finished job; returns those that can start now."""
        plan = self.plan
        self.results[job] = result
        if plan.tune and job.row is None and job.seed == TUNING_SEED:
            return [_Job(job.setting, TUNING_SEED, row, k) for row in plan.rows for k in range(plan.tune)]
        if job.row is None:
            ready = [row for row in plan.rows if not plan.tune or (job.setting, row) in self.chosen]
            return [_Job(job.setting, job.seed, row) for row in ready]
        if job.trial is None or not self._choose(job.setting, job.row):
            return []
        seeds = [seed for seed in plan.seeds if _Job(job.setting, seed) in self.results]
        return [_Job(job.setting, seed, job.row) for seed in seeds]

    def _choose(self, setting: str, row: str) -> bool:
        """Choose the best trial once all are there."""
        jobs = [_Job(setting, TUNING_SEED, row, k) for k in range(self.plan.tune)]
        if not all(job in self.results for job in jobs):
            return False
        scores = [self.results[job].value for job in jobs]
        best = max(scores) if higher_is_better(self.plan.metric) else min(scores)
        self.chosen[setting, row] = self.plan.trials(row)[scores.index(best)]
        return True

    def config(self, job: _Job) -> RunConfig:
        """The config of a job."""
        config = self.plan.config(job.setting, job.seed)
        if job.row is None:
            return config
        config = self.plan.entry(job.row).apply(config)
        if job.trial is not None:
            return self.plan.trials(job.row)[job.trial].apply(config)
        choice = self.chosen.get((job.setting, job.row))
        return config if choice is None else choice.apply(config)

    def records(self) -> _Records:
        """Everything that came of the plan, in its order."""
        plan, records = self.plan, _Records()
        for setting in (each.name for each in plan.settings):
            for seed in plan.seeds:
                metrics = self.results[_Job(setting, seed)]
                records.teachers.append({"setting": setting, "seed": seed, "metrics": metrics})
            for row in plan.rows:
                of = {"setting": setting, "method": row}
                for seed in plan.seeds:
                    result = self.results[_Job(setting, seed, row)]
                    records.runs.append({**of, "seed": seed, **dataclasses.asdict(result)})
                if plan.tune:
                    scores = [self.results[_Job(setting, TUNING_SEED, row, k)] for k in range(plan.tune)]
                    pairs = zip(plan.trials(row), scores, strict=True)
                    made = [dataclasses.asdict(trial) | dataclasses.asdict(score) for trial, score in pairs]
                    chosen = dataclasses.asdict(self.chosen[setting, row])
                    records.tuning.append({**of, "chosen": chosen, "trials": made})
        return records


def _run_all(plan: _Plan, jobs: int | None, on_event: Callable[[str, int, int], None]) -> _Records:
    """All teachers, trials and runs of a plan, in worker processes."""
    workers = max(1, min(jobs or cores(), plan.total))
    threads = max(1, cores() // workers)
    schedule = _Schedule(plan)
    on_event("starting", 0, plan.total)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))
    waiting: dict[Future[Any], _Job] = {}

    def start(ready: Iterable[_Job]) -> None:
        for job in ready:
            waiting[_submit(pool, plan, job, schedule.config(job))] = job

    try:
        start(schedule.first())
        while waiting:
            for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(finished)
                try:
                    result = finished.result()
                except InputError as error:
                    raise InputError(f"{job}: {error}") from error
                start(schedule.after(job, result))
                on_event(str(job), len(schedule.results), plan.total)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return schedule.records()


def _start_worker(threads: int) -> None:
    """Take the threads, and end with the comparison, however it ends: a resumed one must have its folder to itself."""
    torch.set_num_threads(threads)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _submit(pool: ProcessPoolExecutor, plan: _Plan, job: _Job, config: RunConfig) -> Future[Any]:
    teacher = plan.teacher_path(job.setting, job.seed)
    if job.row is None:
        return pool.submit(_teacher_job, config, teacher)
    if job.trial is not None:
        return pool.submit(_trial_job, config, teacher, plan.trial_path(job.setting, job.row, job.trial))
    return pool.submit(_run_job, config, teacher, plan.run_path(job.setting, job.row, job.seed))


def summarise(runs: Iterable[dict[str, Any]], tuning: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of each metric by setting and row, in the order of the runs.

    ``seconds_vs_kd`` and ``memory_vs_kd`` are ratios of means to the first ``kd`` row of the setting, None without one;
    ``relative_improvement`` is that of the mean AUC over the first ``ce`` row's, for tasks that have an AUC;
    ``tuning_runs`` and ``tuning_seconds`` is what choosing the hyper-parameters cost.
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in runs:
        grouped.setdefault((record["setting"], record["method"]), []).append(record)
    tried = {(row["setting"], row["method"]): row["trials"] for row in tuning}

    def mean(key: tuple[str, str], name: str) -> float:
        return float(statistics.mean(record[name] for record in grouped[key]))

    summary = []
    for key, records in grouped.items():
        row: dict[str, Any] = {"setting": key[0], "method": key[1], "runs": len(records)}
        for metric in dict.fromkeys(name for record in records for name in record["metrics"]):
            # the recall of a class that a seed's split lacks does not exist there
            values = [record["metrics"][metric] for record in records if metric in record["metrics"]]
            row[f"{metric}_mean"] = statistics.mean(values)
            row[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
        row["best_epoch_mean"] = mean(key, "best_epoch")
        kd = _first(grouped, key[0], "kd")
        for name, short in (("seconds", "seconds"), ("peak_memory_mb", "memory")):
            row[f"{name}_mean"] = mean(key, name)
            row[f"{short}_vs_kd"] = mean(key, name) / mean(kd, name) if kd is not None else None
        ce = _first(grouped, key[0], "ce")
        if "auc_mean" in row and ce is not None:
            base = statistics.mean(record["metrics"]["auc"] for record in grouped[ce])
            row["relative_improvement"] = relative_improvement(row["auc_mean"], base)
        row["tuning_runs"] = len(tried.get(key, ()))
        row["tuning_seconds"] = sum(each["seconds"] for each in tried.get(key, ()))
        summary.append(row)
    return summary


def _first(grouped: Iterable[tuple[str, str]], setting: str, method: str) -> tuple[str, str] | None:
    """The first row of a method in a setting."""
    return next((key for key in grouped if key[0] == setting and key[1].split(" ")[0] == method), None)


def _open(plan: _Plan, *, resume: bool) -> RunFolder:
    out = plan.out
    content = {
        "config": plan.shared.to_dict(),
        "entries": [dataclasses.asdict(entry) for entry in plan.entries],
        "seeds": list(plan.seeds),
        "settings": [dataclasses.asdict(setting) for setting in plan.settings],
        "tune": plan.tune,
    }
    description = out / "comparison.yaml"
    if resume and not description.exists():
        raise InputError(f"{out} holds no comparison to resume (comparison.yaml)")
    if description.exists():
        if not resume:
            raise InputError(f"{out} already holds a comparison; choose another folder, or resume it")
        if yaml.safe_load(description.read_text()) != content:
            raise InputError(f"the comparison in {out} has other settings than this one (comparison.yaml)")
    folder = RunFolder(out, resume=resume, checkpoint_needed=False)
    folder.write_yaml("comparison.yaml", content)
    return folder


def _teacher_job(config: RunConfig, path: Path) -> dict[str, float]:
    """Make a teacher unless it is there already; runs in a worker process."""
    results = path.with_suffix(".json")
    if results.exists():
        found: dict[str, float] = json.loads(results.read_text())
        return found
    metrics = make_teacher(config, load_data(config), path)
    RunFolder(path.parent, resume=True, checkpoint_needed=False).write_json(results.name, metrics)
    return metrics


def _trial_job(config: RunConfig, teacher: Path, path: Path) -> Score:
    """Run one trial, or read what it came to; runs in a worker process."""
    if path.exists():
        return Score(**json.loads(path.read_text()))
    score = trial(config, teacher)
    RunFolder(path.parent, resume=True, checkpoint_needed=False).write_json(path.name, dataclasses.asdict(score))
    return score


def _run_job(config: RunConfig, teacher: Path, out: Path) -> RunResult:
    """Run one row, continue it, or read what it came to; runs in a worker process."""
    finished = out / "results.json"
    if finished.exists():
        found = json.loads(finished.read_text())
        return RunResult(**{field.name: found[field.name] for field in dataclasses.fields(RunResult)})
    folder = RunFolder(out, resume=True, checkpoint_needed=False)
    folder.write_yaml("config.yaml", config.to_dict())
    return run(config, teacher, out, resume=folder.checkpoint.exists())
