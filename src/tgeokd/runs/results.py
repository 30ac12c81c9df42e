"""What runs and comparisons write to ``results.json``, as typed records with a schema version."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace, validate_value

if TYPE_CHECKING:
    from tgeokd.runs.config import RunConfig

__all__ = [
    "DEFAULT_METHOD",
    "SCHEMA_VERSION",
    "Claim",
    "ComparisonResults",
    "DataVariant",
    "MethodSpec",
    "PairedDifference",
    "RowSummary",
    "RunRecord",
    "RunResults",
    "Spread",
    "TeacherRecord",
    "TrainOn",
    "TuningRecord",
    "default_rows",
    "read",
]

SCHEMA_VERSION = 2
DEFAULT_METHOD = "tgeo"
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
    """One run.

    Attributes:
        metrics: of the student after the last epoch on the test set, and on the validation set as ``val_...``.
        seconds: of the student's training.
        best_epoch: index from 0 of the epoch with the best validation value of the task's primary metric.
        peak_memory_mb: highest resident memory of the process during training, MiB; on CUDA the memory allocated there.
        trains_on_validation: whether the student trains on the validation samples; its ``val_...`` metrics mean nothing then.
    """

    seed: int
    metrics: dict[str, float]
    seconds: float
    epochs: int
    best_epoch: int
    peak_memory_mb: float
    trains_on_validation: bool


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over the seeds; None with one seed or a value that is not finite."""

    mean: float
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class RowSummary(_Row):
    """A row over its seeds.

    Attributes:
        runs: number of runs.
        metrics: each over the runs that have it.
        best_epoch: mean index from 0.
        seconds_vs_kd: ratio of mean seconds to those of the first ``kd`` row of the variant; None without one.
        memory_vs_kd: the same of peak memory.
        relative_improvement: of the mean AUC over the first ``ce`` row's; None without an AUC or such a row.
        tuning_runs: trials of hyper-parameters, with their ``tuning_seconds``.
    """

    runs: int
    metrics: dict[str, Spread]
    seconds: Spread
    peak_memory_mb: Spread
    best_epoch: float
    trains_on_validation: bool
    seconds_vs_kd: float | None = None
    memory_vs_kd: float | None = None
    relative_improvement: float | None = None
    tuning_runs: int = 0
    tuning_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A reference row against another row of its variant, over the seeds that both have.

    Attributes:
        gain: mean difference, positive where the reference is better; None without a shared seed or with a metric that is not
            finite.
        low: lower end of the 95 % interval; None where the differences have no spread, as ``high`` and the p values.
        p: two-sided p value of "the mean is 0".
        p_holm: corrected within the variant and reference row.
        n: number of shared seeds.
    """

    variant: str
    metric: str
    reference: MethodSpec
    other: MethodSpec
    gain: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Metrics of the teacher of a variant and seed: test set, and validation set as ``val_...``."""

    variant: str
    seed: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TuningRecord(_Row):
    """The search of a row's hyper-parameters.

    Attributes:
        chosen: ``options`` and ``settings`` of the best trial, see :class:`tgeokd.runs.search.Trial`.
        trials: each with ``options``, ``settings``, ``value`` (on validation samples) and ``seconds``.
    """

    chosen: dict[str, Any]
    trials: list[dict[str, Any]]


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
        """The results that :meth:`to_dict` made plain.

        Args:
            content: the plain data.
            source: where it comes from, for messages.

        Raises:
            InputError: for results of another schema version or kind, or with wrong fields.
        """
        if not isinstance(content, Mapping) or not {"task", "method", "runs", "kind"} & content.keys():
            raise InputError(f"{source} holds no results of a run or a comparison")
        version = content.get("schema_version", 1)
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{source} has schema version {version}, not {SCHEMA_VERSION}; tools/migrate_results.py converts older files"
            )
        if content.get("kind") != cls.kind:
            raise InputError(f"{source} holds the results of a {content.get('kind')}, not of a {cls.kind}")
        fields = {key: value for key, value in content.items() if key not in ("schema_version", "kind")}
        results: Self = validate_value(cls, fields, source)
        return results

    @classmethod
    def read(cls, path: Path) -> Self:
        """The results of a file; see :meth:`from_dict`."""
        return cls.from_dict(_load(path), str(path))


@dataclass(frozen=True, kw_only=True)
class RunResults(_Results):
    """The ``results.json`` of a single run.

    Attributes:
        run: its options are all that the method was built with.
        class_names: in the order of the logits.
        data: notes of the task.
        key: of everything that the run depends on, see :mod:`tgeokd.runs.stored`; None outside a comparison.
    """

    kind: ClassVar[str] = "run"

    task: str
    run: RunRecord
    class_names: list[str]
    data: dict[str, Any]
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonResults(_Results):
    """The ``results.json`` of a comparison.

    Attributes:
        primary_metric: the metric that rows are compared by.
        chosen_by: the metric that hyper-parameters are chosen by.
        pairs: each row of the default method against every other row of its variant.
        tuning: empty without a search.
        claims: published values.
        data: notes of the task (last variant, first seed).
        wall_seconds: of the last invocation.
        machine: hardware and versions.
    """

    kind: ClassVar[str] = "comparison"

    task: str
    primary_metric: str
    chosen_by: str
    runs: list[RunRecord]
    summary: list[RowSummary]
    pairs: list[PairedDifference]
    teachers: list[TeacherRecord]
    tuning: list[TuningRecord] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    wall_seconds: float
    machine: dict[str, Any]

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
    """The ``results.json`` of a run or of a comparison, whichever it is.

    Raises:
        InputError: for a file that cannot be read, is of another schema version, or holds something else.
    """
    content = _load(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    cls: type[RunResults] | type[ComparisonResults] = RunResults if kind == RunResults.kind else ComparisonResults
    return cls.from_dict(content, str(path))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path.parent} holds no finished run or comparison: {path.name} cannot be read") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
