"""What a comparison consists of, and in which order its trainings can start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from tgeokd.core.metrics import higher_is_better
from tgeokd.runs.build import method_of
from tgeokd.runs.config import RunConfig, TrainOn
from tgeokd.runs.search import Trial, trials
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import slug

__all__ = ["TUNING_SEED", "Entry", "Job", "Plan", "Records", "Schedule", "Setting", "parse_entry"]

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
    """A row from ``METHOD[:key=value...][@train+val]``, for example ``kd:alpha=0.5`` or ``tgeo:outer=holdout``."""
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


@dataclass(frozen=True)
class Plan:
    """What is to be run, and where its files lie."""

    shared: RunConfig
    entries: Sequence[Entry]
    seeds: Sequence[int]
    settings: Sequence[Setting]
    out: Path
    tune: int
    metric: str
    choose_by: str

    def config(self, setting: str, seed: int) -> RunConfig:
        """The config of a setting and seed, still without a row."""
        (data,) = (each.data for each in self.settings if each.name == setting)
        return dataclasses.replace(self.shared, data={**self.shared.data, **data}, seed=seed)

    def entry(self, row: str) -> Entry:
        """The row of a label."""
        return next(entry for entry in self.entries if entry.label == row)

    @property
    def rows(self) -> list[str]:
        """Labels of the rows."""
        return [entry.label for entry in self.entries]

    def teacher_path(self, setting: str, seed: int) -> Path:
        """Where a teacher is saved."""
        return self.out / slug(setting) / "teacher" / f"seed-{seed}.safetensors"

    def run_path(self, setting: str, row: str, seed: int) -> Path:
        """A run's folder."""
        return self.out / slug(setting) / slug(row) / f"seed-{seed}"

    def trial_path(self, setting: str, row: str, k: int) -> Path:
        """Where the score of a trial is."""
        return self.out / slug(setting) / slug(row) / f"trial-{k}.json"

    def trains_on_held_out(self, row: str) -> bool:
        """Whether a row's student trains on the held-out samples too, so that its score on them means nothing."""
        entry = self.entry(row)
        return entry.train_on == "train+val" or method_of(entry.apply(self.shared)).outer == "union"

    def trials(self, row: str) -> list[Trial]:
        """The settings to try for a row."""
        entry = self.entry(row)
        return trials(entry.method, entry.apply(self.shared).options, self.tune, TUNING_SEED)

    @property
    def total(self) -> int:
        """Trainings, teachers' included."""
        tuning = self.tune * len(self.entries) + (1 if self.tune else 0)
        return len(self.settings) * (len(self.seeds) * (1 + len(self.entries)) + tuning)


@dataclass
class Records:
    """What came of it, in the order of the plan."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    teachers: list[dict[str, Any]] = field(default_factory=list)
    tuning: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One training: a teacher (no row), a trial (with its number) or a run."""

    setting: str
    seed: int
    row: str | None = None
    trial: int | None = None

    def __str__(self) -> str:
        what = self.row or "teacher"
        which = f"seed {self.seed}" if self.trial is None else f"trial {self.trial + 1}"
        return f"{what}, {self.setting}, {which}"


class Schedule:
    """Which trainings can start: a run as soon as its teacher is there and its hyper-parameters are chosen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.results: dict[Job, Any] = {}
        self.chosen: dict[tuple[str, str], Trial] = {}

    def first(self) -> list[Job]:
        """The teachers; those that trials wait for come first."""
        seeds = [*([TUNING_SEED] if self.plan.tune else []), *self.plan.seeds]
        return [Job(setting.name, seed) for seed in seeds for setting in self.plan.settings]

    def after(self, job: Job, result: Any) -> list[Job]:
        """Take note of a finished job; returns those that can start now."""
        plan = self.plan
        self.results[job] = result
        if plan.tune and job.row is None and job.seed == TUNING_SEED:
            return [Job(job.setting, TUNING_SEED, row, k) for row in plan.rows for k in range(plan.tune)]
        if job.row is None:
            ready = [row for row in plan.rows if not plan.tune or (job.setting, row) in self.chosen]
            return [Job(job.setting, job.seed, row) for row in ready]
        if job.trial is None or not self._choose(job.setting, job.row):
            return []
        seeds = [seed for seed in plan.seeds if Job(job.setting, seed) in self.results]
        return [Job(job.setting, seed, job.row) for seed in seeds]

    def _choose(self, setting: str, row: str) -> bool:
        """Choose the best trial once all are there."""
        jobs = [Job(setting, TUNING_SEED, row, k) for k in range(self.plan.tune)]
        if not all(job in self.results for job in jobs):
            return False
        scores = [self.results[job].value for job in jobs]
        best = max(scores) if higher_is_better(self.plan.choose_by) else min(scores)
        self.chosen[setting, row] = self.plan.trials(row)[scores.index(best)]
        return True

    def config(self, job: Job) -> RunConfig:
        """The config of a job."""
        config = self.plan.config(job.setting, job.seed)
        if job.row is None:
            return config
        config = self.plan.entry(job.row).apply(config)
        if job.trial is not None:
            return self.plan.trials(job.row)[job.trial].apply(config)
        choice = self.chosen.get((job.setting, job.row))
        return config if choice is None else choice.apply(config)

    def records(self) -> Records:
        """Everything that came of the plan, in its order."""
        plan, records = self.plan, Records()
        for setting in (each.name for each in plan.settings):
            for seed in plan.seeds:
                metrics = self.results[Job(setting, seed)]
                records.teachers.append({"setting": setting, "seed": seed, "metrics": metrics})
            for row in plan.rows:
                of = {"setting": setting, "method": row, "trains_on_held_out": plan.trains_on_held_out(row)}
                for seed in plan.seeds:
                    result = self.results[Job(setting, seed, row)]
                    records.runs.append({**of, "seed": seed, **dataclasses.asdict(result)})
                if plan.tune:
                    scores = [self.results[Job(setting, TUNING_SEED, row, k)] for k in range(plan.tune)]
                    pairs = zip(plan.trials(row), scores, strict=True)
                    made = [dataclasses.asdict(trial) | dataclasses.asdict(score) for trial, score in pairs]
                    chosen = dataclasses.asdict(self.chosen[setting, row])
                    records.tuning.append({"setting": setting, "method": row, "chosen": chosen, "trials": made})
        return records
