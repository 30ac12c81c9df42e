"""Methods side by side: for each seed the same split, teacher, initial student and budget."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.data import TaskData
from tgeokd.methods.registry import DEFAULT_METHOD
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.executors import Executor, Job, LocalProcesses, machine
from tgeokd.runs.plan import TUNING_SEED, Plan, Training
from tgeokd.runs.published import claims
from tgeokd.runs.results import ComparisonResults, DataVariant, MethodSpec, RunRecord, RunResults
from tgeokd.runs.single import Score, check, halves, run, trial
from tgeokd.runs.statistics import paired_table, summarise
from tgeokd.runs.stored import computed, result_key, stored
from tgeokd.runs.teacher import build_teacher, cache_teacher_logits, forget_training
from tgeokd.utils.documents import read_yaml
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import slug
from tgeokd.utils.run_folder import RunFolder


def compare(
    config: RunConfig,
    rows: Sequence[MethodSpec],
    seeds: Sequence[int],
    out: Path,
    *,
    variants: Sequence[DataVariant] = (DataVariant("default"),),
    tune: int = 0,
    jobs: int | None = None,
    executor: Executor | None = None,
    resume: bool = False,
    on_event: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> ComparisonResults:
    """Run every row on every variant of the data for every seed, and write ``results.json``.

    Wrong settings are refused before anything is written.

    Args:
        config: what all runs share; its method and options are replaced by each row's.
        rows: methods to compare.
        seeds: one run each.
        out: folder of the comparison; each run's files are in ``out/VARIANT/ROW/seed-N``.
        variants: of the data.
        tune: trials of hyper-parameters per row and variant, judged on validation samples under a seed of their own (by the
            task's ``metrics.choose_by``); the best choice is then used for all seeds. 0 takes the methods' defaults.
        jobs: number of local processes; by default one per core.
        executor: runs the trainings instead of local processes.
        resume: finish the comparison in ``out``; a finished run is not run again.
        on_event: called with a line of text, the number of finished trainings, and the number of all trainings.
    """
    data = _validate(config, rows, seeds, variants, tune)
    plan = Plan(config, rows, seeds, variants, out, tune, data.metrics.choose_by)
    for row in rows if tune else ():
        plan.candidates(row)  # refuses a search of more trials than there are
    folder = _open(plan, resume=resume)
    started = time.perf_counter()
    trainings = [Job(each, partial(_call, plan, each), plan.needs(each), str(each)) for each in plan.trainings()]
    on_event("starting", 0, len(trainings))
    executor = executor or LocalProcesses(jobs)
    found = executor.map(trainings, lambda job, done: on_event(job.name, done, len(trainings)))
    runs, teachers, tuning = plan.records(found)
    metric = data.metrics.primary
    results = ComparisonResults(
        task=config.task,
        primary_metric=metric,
        chosen_by=plan.choose_by,
        runs=runs,
        summary=summarise(runs, tuning),
        pairs=paired_table(runs, metric, [row for row in rows if row.method == DEFAULT_METHOD]),
        teachers=teachers,
        tuning=tuning,
        claims=claims(config, rows, metric),
        data=data.notes,
        wall_seconds=round(time.perf_counter() - started, 1),
        machine=machine(),
    )
    folder.write_json("results.json", results.to_dict())
    return results


def _validate(
    config: RunConfig, rows: Sequence[MethodSpec], seeds: Sequence[int], variants: Sequence[DataVariant], tune: int
) -> TaskData:
    """Refuse what cannot be run before anything is written or trained. Returns the data of the last variant, first seed."""
    labels, names = [row.label for row in rows], [variant.name for variant in variants]
    for what, given in (("rows", labels), ("variants", names), ("seeds", list(map(str, seeds)))):
        if len(set(map(slug, given))) < len(given):
            raise InputError(f"two {what} of the comparison are the same: {', '.join(given)}")
    if not (rows and seeds and variants):
        raise InputError("a comparison needs at least one method and one seed")
    if tune < 0:
        raise InputError(f"tune must be >= 0 trials, not {tune}")
    if tune and TUNING_SEED in seeds:
        raise InputError(f"seed {TUNING_SEED} is used by the trials and cannot be reported as well")
    for variant in variants:
        first = replace(config, data={**config.data, **variant.data}, seed=seeds[0])
        data = load_data(first)
        for row in rows:
            check(row.apply(first), data)
        if tune:
            halves(data, TUNING_SEED)  # refuses a validation set that is too small
    return data


def _open(plan: Plan, *, resume: bool) -> RunFolder:
    content: dict[str, Any] = {
        "config": plan.shared.to_dict(),
        "rows": [dataclasses.asdict(row) for row in plan.rows],
        "seeds": list(plan.seeds),
        "variants": [dataclasses.asdict(variant) for variant in plan.variants],
        "tune": plan.tune,
    }
    description = plan.out / "comparison.yaml"
    if resume:
        if not description.exists():
            raise InputError(f"{plan.out} holds no comparison to resume ({description.name})")
        found = read_yaml(description)
        if isinstance(found, dict) and isinstance(found.get("config"), dict):
            found["config"] |= {"data_dir": plan.shared.data_dir}  # the data may have moved
        if found != content:
            raise InputError(f"the comparison in {plan.out} has other settings than this one ({description.name})")
    folder = RunFolder(plan.out, resume=resume, checkpoint_needed=False)
    folder.write_yaml("comparison.yaml", content)
    return folder


def _call(
    plan: Plan, training: Training, results: Mapping[Any, Any]
) -> tuple[Callable[..., Any], tuple[RunConfig | Path, ...]]:
    """The function and the arguments of a training."""
    config, path = plan.config(training, results), plan.path(training)
    if training.row is None:
        return _teacher_job, (config, path)
    teacher = plan.path(Training(training.variant, training.seed))
    return (_run_job if training.trial is None else _trial_job), (config, teacher, path)


def _teacher_job(config: RunConfig, path: Path) -> dict[str, float]:
    """Build a teacher, and store its logits where the config says so, unless that is done already."""
    known = path.with_suffix(".json")
    if not path.exists():
        known.unlink(missing_ok=True)
    key = result_key("teacher", config)
    metrics: dict[str, float] = computed(known, key, lambda: build_teacher(config, load_data(config), path))
    forget_training(path)
    options = _sharing_logits(config, path).teacher_cache
    if options is not None and options.folder is not None:
        cache_teacher_logits(config, load_data(config), path, Path(options.folder))
    return metrics


def _trial_job(config: RunConfig, teacher: Path, path: Path) -> Score:
    """Run one trial, or read its score."""
    key = result_key("trial", config, teacher)
    config, work = _sharing_logits(config, teacher), path.with_suffix(".training")
    score = Score(**computed(path, key, lambda: dataclasses.asdict(trial(config, teacher, work))))
    shutil.rmtree(work, ignore_errors=True)
    return score


def _run_job(config: RunConfig, teacher: Path, out: Path) -> RunRecord:
    """Run one row, continue it, or read its results."""
    key = result_key("run", config, teacher)
    finished = stored(out / "results.json", key)
    if finished is not None:
        return RunResults.from_dict(finished, str(out / "results.json")).run
    folder = RunFolder(out, resume=True, checkpoint_needed=False)
    folder.write_yaml("config.yaml", config.to_dict())
    return run(_sharing_logits(config, teacher), teacher, out, resume=folder.has_checkpoint, key=key)


def _sharing_logits(config: RunConfig, teacher: Path) -> RunConfig:
    """The config with one folder for the stored logits, beside the teacher, unless it names one."""
    options = config.teacher_cache
    if options is None or options.folder is not None:
        return config
    folder = str(teacher.with_suffix(".cache"))
    return replace(config, teacher_cache=dataclasses.replace(options, folder=folder))
