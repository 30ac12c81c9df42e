"""What runs and comparisons write to ``results.json``, as typed records with a schema version."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from tgeokd.methods.registry import DEFAULT_METHOD
from tgeokd.utils.documents import read_json
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import slug
from tgeokd.utils.validation import replace, validate_value

if TYPE_CHECKING:
    from tgeokd.runs.config import RunConfig

SCHEMA_VERSION = 2
TrainOn = Literal["train", "train+val"]


@dataclass(frozen=True)
class MethodSpec:
    """A row of a comparison: a method with options, and the samples that the student trains on.

    Rows are equal, and hash alike, where these three are; the label is for people and is never parsed.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "train"

    def __hash__(self) -> int:
        return hash((self.method, frozenset(self.options), self.train_on))

    @property
    def label(self) -> str:
        """The row's name in tables, for example ``kd (alpha=0.5, train+val)``."""
        shown = [f"{key}={value}" for key, value in self.options.items()]
        if self.train_on != "train":
            shown.append(self.train_on)
        return f"{self.method} ({', '.join(shown)})" if shown else self.method

    @property
    def text(self) -> str:
        """The row as the command line accepts it, for example ``kd:alpha=0.5@train+val``."""
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.options.items()}
        options = "".join(f":{key}={value}" for key, value in values.items())
        return f"{self.method}{options}{'@train+val' if self.train_on == 'train+val' else ''}"

    def folder(self, comparison: Path, variant: str) -> Path:
        """The folder of the row's runs on a data variant; each has its files in ``seed-N`` there."""
        return comparison / slug(variant) / slug(self.label)

    def apply(self, config: RunConfig) -> RunConfig:
        """The run's config with this row's method; the config's own method keeps the options it has there."""
        own = config.options if self.method == config.method else {}
        return replace(config, method=self.method, options={**own, **self.options}, train_on=self.train_on)


@dataclass(frozen=True)
class DataVariant:
    """A variant of the task's data that all rows are run on."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """The fields that say which row a record belongs to."""

    variant: str
    method: str
    options: dict[str, Any]
    train_on: TrainOn

    @property
    def spec(self) -> MethodSpec:
        """The row, to compare and to look up by."""
        return MethodSpec(self.method, self.options, self.train_on)

    @property
    def label(self) -> str:
        """The row's name for people."""
        return self.spec.label


@dataclass(frozen=True, kw_only=True)
class RunRecord(_Row):
    """One run."""

    seed: int
    metrics: dict[str, float]  # after the last epoch on the test set, and on the validation set as ``val_...``
    seconds: float  # of the student's training
    epochs: int
    best_epoch: int  # from 0: the one with the best validation value of the task's primary metric
    peak_memory_mb: float  # during training, MiB: resident memory of the process, or memory allocated on the GPU
    trains_on_validation: bool  # the ``val_...`` metrics mean nothing then


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over the seeds; None with one seed or a value that is not finite."""

    mean: float
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class RowSummary(_Row):
    """A row over its seeds."""

    runs: int
    metrics: dict[str, Spread]  # each over the runs that have it
    seconds: Spread
    peak_memory_mb: Spread
    best_epoch: float  # mean, from 0
    trains_on_validation: bool
    seconds_vs_kd: float | None = None  # ratio of the means to that of the variant's first ``kd`` row
    memory_vs_kd: float | None = None
    relative_improvement: float | None = None  # of the mean AUC over that of the variant's first ``ce`` row
    tuning_runs: int = 0  # trials of hyper-parameters
    tuning_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A reference row against another row of its variant, over the seeds that both have."""

    variant: str
    metric: str
    reference: MethodSpec
    other: MethodSpec
    gain: float | None  # mean, positive where the reference is better; None without a shared seed or with NaN
    low: float | None  # end of the 95 % interval; None without spread, as ``high``, ``p`` and ``p_holm``
    high: float | None
    p: float | None  # two-sided, of "the mean is 0"
    p_holm: float | None = None  # corrected within the variant and reference row
    n: int  # shared seeds


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """The teacher of a variant and seed, with metrics as in :class:`RunRecord`."""

    variant: str
    seed: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TuningRecord(_Row):
    """The search of a row's hyper-parameters, see :class:`tgeokd.runs.search.Trial`."""

    chosen: dict[str, Any]  # ``options`` and ``settings`` of the best trial
    trials: list[dict[str, Any]]  # ``options``, ``settings``, ``value`` (on validation samples) and ``seconds`` of each


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The published value of the primary metric of a row."""

    row: MethodSpec
    value: float
    source: str
    protocol: str


class _Results:
    """Reading and writing; ``kind`` distinguishes the two sorts of ``results.json``."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        content: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"schema_version": SCHEMA_VERSION, "kind": self.kind, **content}

    @classmethod
    def from_dict(cls, content: Any, source: str = "results") -> Self:
        """The results that :meth:`to_dict` made plain; ``source`` is where they come from, for messages.

        Raises:
            InputError: for results of another schema version or kind, or with wrong fields.
        """
        if not isinstance(content, Mapping) or not {"task", "method", "runs", "kind"} & content.keys():
            raise InputError(f"{source} holds no results of a run or a comparison")
        fields = dict(content)
        version, kind = fields.pop("schema_version", 1), fields.pop("kind", None)
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{source} has schema version {version}, not {SCHEMA_VERSION}; tools/migrate_results.py converts older files"
            )
        if kind != cls.kind:
            raise InputError(f"{source} holds the results of a {kind}, not of a {cls.kind}")
        results: Self = validate_value(cls, fields, source)
        return results

    @classmethod
    def read(cls, path: Path) -> Self:
        """The results of a file; see :meth:`from_dict`."""
        return cls.from_dict(load_json(path), str(path))


@dataclass(frozen=True, kw_only=True)
class RunResults(_Results):
    """The ``results.json`` of a single run."""

    kind: ClassVar[str] = "run"

    task: str
    run: RunRecord
    class_names: list[str]  # in the order of the logits
    data: dict[str, Any]  # notes of the task
    key: str | None = None  # see :mod:`tgeokd.runs.stored`; None outside a comparison


@dataclass(frozen=True, kw_only=True)
class ComparisonResults(_Results):
    """The ``results.json`` of a comparison."""

    kind: ClassVar[str] = "comparison"

    task: str
    primary_metric: str  # rows are compared by it
    chosen_by: str  # hyper-parameters are chosen by it
    runs: list[RunRecord]
    summary: list[RowSummary]
    pairs: list[PairedDifference]  # each row of the default method against every other row of its variant
    teachers: list[TeacherRecord]
    tuning: list[TuningRecord] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # notes of the task (last variant, first seed)
    wall_seconds: float  # of the last invocation
    machine: dict[str, Any]  # hardware and versions

    @property
    def variants(self) -> list[str]:
        """Names of the data variants, in order."""
        return list(dict.fromkeys(row.variant for row in self.summary))

    @property
    def main_pairs(self) -> list[PairedDifference]:
        """The pairs whose reference is the default method's own row, see :func:`default_rows`."""
        wanted = default_rows([row.spec for row in self.summary])
        return [pair for pair in self.pairs if pair.reference in wanted]


def default_rows(rows: list[MethodSpec]) -> list[MethodSpec]:
    """The row of the default method without options; where it is not there, all rows of that method."""
    own = [row for row in dict.fromkeys(rows) if row.method == DEFAULT_METHOD]
    return [row for row in own if row == MethodSpec(DEFAULT_METHOD)] or own


def read(path: Path) -> RunResults | ComparisonResults:
    """The ``results.json`` of a run or of a comparison, whichever it is; see :meth:`RunResults.from_dict`."""
    content = load_json(path)
    is_run = isinstance(content, dict) and content.get("kind") == RunResults.kind
    return (RunResults if is_run else ComparisonResults).from_dict(content, str(path))


def load_json(path: Path) -> Any:
    """The content of a JSON file of a finished run or comparison."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no finished run or comparison: it has no {path.name}")
    return read_json(path)
