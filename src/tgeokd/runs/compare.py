"""Methods side by side: for each seed the same split, teacher, initial student and budget."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml

from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig
from tgeokd.runs.executors import worker_pool
from tgeokd.runs.plan import TUNING_SEED, Entry, Job, Plan, Records, Schedule, Setting
from tgeokd.runs.single import RunResult, Score, check, halves, run, trial
from tgeokd.runs.statistics import paired_table
from tgeokd.runs.summary import claims, machine, summarise
from tgeokd.runs.teacher import make_teacher, store_answers
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import RunFolder, slug

__all__ = ["compare"]


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
        tune: trials of hyper-parameters a row and setting, judged on held-out samples under a seed of their own (by the task's
            ``metrics.choose_by``); the best choice is then used for all seeds. 0 takes the methods' defaults.
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
        if tune:
            halves(data, TUNING_SEED)  # a held-out set too small for it is refused before anything is trained
    plan = Plan(config, entries, seeds, settings, out, tune, data.metrics.primary, data.metrics.choose_by)
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
        "chosen_by": plan.choose_by,
        "teachers": records.teachers,
        "tuning": records.tuning,
        "claimed": claims(config, entries, plan.metric),
        "data": data.notes,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    folder.write_json("results.json", content)
    return content


def _run_all(plan: Plan, jobs: int | None, on_event: Callable[[str, int, int], None]) -> Records:
    """All teachers, trials and runs of a plan, in worker processes."""
    schedule = Schedule(plan)
    on_event("starting", 0, plan.total)
    pool = worker_pool(jobs, plan.total)
    waiting: dict[Future[Any], Job] = {}

    def start(ready: Iterable[Job]) -> None:
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


def _submit(pool: ProcessPoolExecutor, plan: Plan, job: Job, config: RunConfig) -> Future[Any]:
    teacher = plan.teacher_path(job.setting, job.seed)
    if job.row is None:
        return pool.submit(_teacher_job, config, teacher)
    if job.trial is not None:
        return pool.submit(_trial_job, config, teacher, plan.trial_path(job.setting, job.row, job.trial))
    return pool.submit(_run_job, config, teacher, plan.run_path(job.setting, job.row, job.seed))


def _open(plan: Plan, *, resume: bool) -> RunFolder:
    out = plan.out
    content: dict[str, Any] = {
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
        found = yaml.safe_load(description.read_text())
        found["config"]["data_dir"] = content["config"]["data_dir"]  # the data may have moved
        if found != content:
            raise InputError(f"the comparison in {out} has other settings than this one (comparison.yaml)")
    folder = RunFolder(out, resume=resume, checkpoint_needed=False)
    folder.write_yaml("comparison.yaml", content)
    return folder


def _teacher_job(config: RunConfig, path: Path) -> dict[str, float]:
    """Make a teacher, and ask it where it is asked once, unless that is done already; runs in a worker process."""
    results, data = path.with_suffix(".json"), None
    if results.exists():
        metrics: dict[str, float] = json.loads(results.read_text())
    else:
        data = load_data(config)
        metrics = make_teacher(config, data, path)
        RunFolder(path.parent, resume=True, checkpoint_needed=False).write_json(results.name, metrics)
    options = _sharing_answers(config, path).teacher_cache
    if options is not None and options.folder is not None:
        store_answers(config, data or load_data(config), path, Path(options.folder))
    return metrics


def _trial_job(config: RunConfig, teacher: Path, path: Path) -> Score:
    """Run one trial, or read what it came to; runs in a worker process."""
    if path.exists():
        return Score(**json.loads(path.read_text()))
    score = trial(_sharing_answers(config, teacher), teacher)
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
    return run(_sharing_answers(config, teacher), teacher, out, resume=folder.has_checkpoint)


def _sharing_answers(config: RunConfig, teacher: Path) -> RunConfig:
    """The config with one folder for what a teacher is asked once, beside the teacher, unless it names one."""
    options = config.teacher_cache
    if options is None or options.folder is not None:
        return config
    folder = str(teacher.with_suffix(".cache"))
    return dataclasses.replace(config, teacher_cache=dataclasses.replace(options, folder=folder))
