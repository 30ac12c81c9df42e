"""Methods side by side: for each seed the same split, teacher, initial student and budget."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from tgeokd.errors import InputError
from tgeokd.experiments.config import RunConfig, TrainOn, preset
from tgeokd.experiments.run import RunResult, check, load_data, run, train_teacher
from tgeokd.runfolder import RunFolder, slug

__all__ = ["Entry", "Setting", "compare", "parse_entry", "summarise"]


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
        """The run's config with this row's method."""
        return dataclasses.replace(config, method=self.method, options=dict(self.options), train_on=self.train_on)


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
    settings: Sequence[Setting] = (),
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
        settings: variants of the data; by default the config's own.
        jobs: processes; by default one a core.
        resume: finish the comparison in ``out``; a finished run is not run again.
        on_event: called with a line of text, how many trainings are done, and how many there will be.

    Returns:
        The content of ``results.json``.
    """
    if not settings:
        usual = preset(config.task).data
        changed = [f"{key}={value}" for key, value in config.data.items() if usual.get(key) != value]
        settings = [Setting(", ".join(changed) or "default")]
    for what, names in (
        ("rows", [slug(entry.label) for entry in entries]),
        ("settings", [slug(setting.name) for setting in settings]),
        ("seeds", [str(seed) for seed in seeds]),
    ):
        if len(set(names)) < len(names):
            raise InputError(f"two {what} of the comparison are the same: {', '.join(names)}")
    if not entries or not seeds:
        raise InputError("a comparison needs at least one method and one seed")
    plan = {
        (setting.name, seed): dataclasses.replace(config, data={**config.data, **setting.data}, seed=seed)
        for setting in settings
        for seed in seeds
    }
    for setting in settings:
        for entry in entries:
            check(entry.apply(plan[setting.name, seeds[0]]))
    folder = _open(out, config, entries, seeds, settings, resume=resume)

    teachers, runs = _run_all(plan, entries, out, jobs, on_event)
    places = [setting.name for setting in settings]
    rows = [entry.label for entry in entries]
    runs.sort(key=lambda r: (places.index(r["setting"]), rows.index(r["method"]), r["seed"]))
    teachers.sort(key=lambda t: (places.index(t["setting"]), t["seed"]))
    content = {"task": config.task, "runs": runs, "summary": summarise(runs), "teachers": teachers}
    folder.write_json("results.json", content)
    return content


def _run_all(
    plan: dict[tuple[str, int], RunConfig],
    entries: Sequence[Entry],
    out: Path,
    jobs: int | None,
    on_event: Callable[[str, int, int], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All teachers and all runs of a plan (config by setting and seed), in worker processes, in no certain order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(jobs or cores, len(plan) * len(entries)))
    threads = max(1, cores // workers)
    total = len(plan) * (1 + len(entries))
    teachers: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    on_event("starting", 0, total)
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )
    try:
        waiting: dict[Future[Any], tuple[str, int, Entry | None]] = {
            pool.submit(_teacher_job, config, _teacher_path(out, *key)): (*key, None) for key, config in plan.items()
        }
        # A teacher's students start as soon as it is there, so no core waits for the slowest teacher.
        while waiting:
            for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                setting, seed, entry = waiting.pop(finished)
                record = {"setting": setting, "seed": seed}
                name = f"{'teacher' if entry is None else entry.label}, {setting}, seed {seed}"
                try:
                    result = finished.result()
                except InputError as error:
                    raise InputError(f"{name}: {error}") from error
                if entry is None:
                    teachers.append({**record, "metrics": result})
                    for row in entries:
                        paths = _teacher_path(out, setting, seed), _run_path(out, setting, row, seed)
                        waiting[pool.submit(_run_job, row.apply(plan[setting, seed]), *paths)] = (setting, seed, row)
                else:
                    runs.append({**record, "method": entry.label, **dataclasses.asdict(result)})
                on_event(name, len(teachers) + len(runs), total)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return teachers, runs


def summarise(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of each metric by setting and row, in the order of the runs.

    ``seconds_vs_kd`` is the ratio of mean seconds to the first ``kd`` row of the setting, None without one.
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in runs:
        grouped.setdefault((record["setting"], record["method"]), []).append(record)
    seconds = {key: statistics.mean(r["seconds"] for r in records) for key, records in grouped.items()}
    summary = []
    for (setting, method), records in grouped.items():
        row: dict[str, Any] = {"setting": setting, "method": method, "runs": len(records)}
        for metric in records[0]["metrics"]:
            values = [record["metrics"][metric] for record in records]
            row[f"{metric}_mean"] = statistics.mean(values)
            row[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
        kd = next((key for key in seconds if key[0] == setting and key[1].split(" ")[0] == "kd"), None)
        row["seconds_mean"] = seconds[setting, method]
        row["seconds_vs_kd"] = seconds[setting, method] / seconds[kd] if kd is not None else None
        summary.append(row)
    return summary


def _open(
    out: Path,
    config: RunConfig,
    entries: Sequence[Entry],
    seeds: Sequence[int],
    settings: Sequence[Setting],
    *,
    resume: bool,
) -> RunFolder:
    content = {
        "config": config.to_dict(),
        "entries": [dataclasses.asdict(entry) for entry in entries],
        "seeds": list(seeds),
        "settings": [dataclasses.asdict(setting) for setting in settings],
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


def _teacher_path(out: Path, setting: str, seed: int) -> Path:
    return out / slug(setting) / "teacher" / f"seed-{seed}.safetensors"


def _run_path(out: Path, setting: str, entry: Entry, seed: int) -> Path:
    return out / slug(setting) / slug(entry.label) / f"seed-{seed}"


def _teacher_job(config: RunConfig, path: Path) -> dict[str, float]:
    """Train a teacher unless it is there already; runs in a worker process."""
    results = path.with_suffix(".json")
    if results.exists():
        found: dict[str, float] = json.loads(results.read_text())
        return found
    metrics = train_teacher(config, load_data(config), path)
    results.write_text(json.dumps(metrics) + "\n")
    return metrics


def _run_job(config: RunConfig, teacher: Path, out: Path) -> RunResult:
    """Run one row, continue it, or read what it came to; runs in a worker process."""
    finished = out / "results.json"
    if finished.exists():
        found = json.loads(finished.read_text())
        return RunResult(found["metrics"], found["seconds"], found["epochs"])
    folder = RunFolder(out, resume=True, checkpoint_needed=False)
    folder.write_yaml("config.yaml", config.to_dict())
    return run(config, teacher, out, resume=folder.checkpoint.exists())
