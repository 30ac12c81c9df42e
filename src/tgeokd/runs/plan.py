"""What a comparison consists of, and what each of its trainings needs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tgeokd.core.metrics import best_index
from tgeokd.methods import current_names
from tgeokd.runs.config import RunConfig, parse_setting
from tgeokd.runs.results import DataVariant, MethodSpec, RunRecord, TeacherRecord, TrainOn, TuningRecord
from tgeokd.runs.search import Trial, trials
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace

TUNING_SEED = 1_000  # of the trials of hyper-parameters: no reported run has its split and initial weights


def parse_method(text: str) -> MethodSpec:
    """A row from ``METHOD[:key=value...][@train+val]``, for example ``kd:alpha=0.5`` or ``tgeo:outer=holdout``."""
    rest, _, train_on = text.strip().partition("@")
    method, *settings = rest.split(":")
    options = dict(parse_setting(each, text.strip(), "METHOD:key=value") for each in settings)
    if train_on not in ("", *get_args(TrainOn)):
        raise InputError(f"{text!r} must end in @train or @train+val, if in anything after @")
    method, options = current_names(method, options)
    return MethodSpec(method, options, "train+val" if train_on == "train+val" else "train")


@dataclass(frozen=True)
class Training:
    """One training of a comparison: a teacher (no row), a trial (with its number from 0) or a run."""

    variant: str
    seed: int
    row: MethodSpec | None = None
    trial: int | None = None

    def __str__(self) -> str:
        what = "teacher" if self.row is None else self.row.label
        which = f"seed {self.seed}" if self.trial is None else f"trial {self.trial + 1}"
        return f"{what}, {self.variant}, {which}"


@dataclass(frozen=True)
class Plan:
    """What is to be run, and where its files are; see :func:`tgeokd.runs.compare.compare`."""

    shared: RunConfig
    rows: Sequence[MethodSpec]
    seeds: Sequence[int]
    variants: Sequence[DataVariant]
    out: Path
    tune: int
    choose_by: str  # metric that the trials are judged by

    def trainings(self) -> Iterator[Training]:
        """All trainings, in the order in which they start where nothing else decides it."""
        names = [variant.name for variant in self.variants]
        seeds = [*([TUNING_SEED] if self.tune else []), *self.seeds]
        yield from (Training(name, seed) for seed in seeds for name in names)
        yield from (each for name in names for row in self.rows for each in self.trials_of(name, row))
        yield from (Training(name, seed, row) for seed in self.seeds for name in names for row in self.rows)

    def needs(self, training: Training) -> tuple[Training, ...]:
        """A run needs its teacher and all trials of its row; a trial needs its teacher."""
        if training.row is None:
            return ()
        tried = self.trials_of(training.variant, training.row) if training.trial is None else ()
        return (Training(training.variant, training.seed), *tried)

    def trials_of(self, variant: str, row: MethodSpec) -> tuple[Training, ...]:
        """The trials of a row."""
        return tuple(Training(variant, TUNING_SEED, row, k) for k in range(self.tune))

    def candidates(self, row: MethodSpec) -> list[Trial]:
        """The hyper-parameters that the trials of a row try."""
        return trials(row.method, row.apply(self.shared).options, self.tune, TUNING_SEED)

    def chosen(self, variant: str, row: MethodSpec, results: Mapping[Training, Any]) -> Trial:
        """The hyper-parameters of the best trial, the first of equals."""
        values = [results[tried].value for tried in self.trials_of(variant, row)]
        return self.candidates(row)[best_index(values, self.choose_by)]

    def config(self, training: Training, results: Mapping[Training, Any]) -> RunConfig:
        """The config of a training, given the results of what it needs."""
        (data,) = (variant.data for variant in self.variants if variant.name == training.variant)
        config = replace(self.shared, data={**self.shared.data, **data}, seed=training.seed)
        if training.row is None:
            return config
        config = training.row.apply(config)
        if training.trial is not None:
            return self.candidates(training.row)[training.trial].apply(config)
        return self.chosen(training.variant, training.row, results).apply(config) if self.tune else config

    def path(self, training: Training) -> Path:
        """A teacher's file of weights or predictions, a trial's file, or the folder of a run."""
        folder = (training.row or MethodSpec("teacher")).folder(self.out, training.variant)
        if training.row is None:
            return folder / f"seed-{training.seed}.safetensors"
        return folder / (f"seed-{training.seed}" if training.trial is None else f"trial-{training.trial}.json")

    def records(
        self, results: Mapping[Training, Any]
    ) -> tuple[list[RunRecord], list[TeacherRecord], list[TuningRecord]]:
        """Runs, teachers and searches, each by variant, row and seed."""
        runs, teachers, tuning = [], [], []
        for name in (variant.name for variant in self.variants):
            for seed in self.seeds:
                teachers.append(TeacherRecord(variant=name, seed=seed, metrics=results[Training(name, seed)]))
            for row in self.rows:
                fields: dict[str, Any] = {"variant": name, **dataclasses.asdict(row)}
                found = (results[Training(name, seed, row)] for seed in self.seeds)
                runs += [dataclasses.replace(record, **fields) for record in found]
                if self.tune:
                    scores = [results[tried] for tried in self.trials_of(name, row)]
                    pairs = zip(self.candidates(row), scores, strict=True)
                    made = [dataclasses.asdict(trial) | dataclasses.asdict(score) for trial, score in pairs]
                    chosen = dataclasses.asdict(self.chosen(name, row, results))
                    tuning.append(TuningRecord(**fields, chosen=chosen, trials=made))
        return runs, teachers, tuning
