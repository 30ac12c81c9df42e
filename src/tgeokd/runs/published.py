"""Published results to hold a run's own against: the column "claimed" beside "reproduced"."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from tgeokd.methods import METHODS
from tgeokd.runs.config import RunConfig, preset, presets
from tgeokd.runs.results import Claim, MethodSpec


class Published(NamedTuple):
    """A number that a source claims on the full data set of a task."""

    task: str
    teacher: str | None  # name of the model; None for plain training
    student: str | None  # None for the teacher's own result
    method: str  # ``dkd+lskd`` for ``dkd`` with standardised logits, ``teacher`` for the teacher's own result
    metric: str
    value: float  # in the metric's unit; accuracy in [0, 1]
    source: str  # who claims it
    protocol: str  # which epoch is reported, and what it was chosen on
    needs: Mapping[str, Any]  # options that the models must have


def claimed(
    task: str, teacher: Mapping[str, Any], student: Mapping[str, Any], row: MethodSpec, metric: str
) -> Published | None:
    """What is published for a row of a comparison, None where nothing is.

    The number is the source's best setting of the method on the full data: show it only where the run's data are full.

    Args:
        task: name of the task.
        teacher: name and options of its model, plain data. Ignored for ``ce``.
        student: the same of the student. Ignored for ``teacher``.
        row: of its options, ``standardise`` tells the two kinds of ``dkd`` apart; the others do not matter.
        metric: name of the metric.
    """
    method = METHODS.renamed.get(row.method, row.method)
    if method == "dkd" and row.options.get("standardise"):
        method = "dkd+lskd"
    for entry in _load():
        models = [(entry.teacher, teacher), (entry.student, student)]
        if (entry.task, entry.method, entry.metric) == (task, method, metric) and all(
            name is None or {"name": name, **entry.needs}.items() <= model.items() for name, model in models
        ):
            return entry
    return None


def claims(config: RunConfig, rows: Iterable[MethodSpec], metric: str) -> list[Claim]:
    """The published value of each row, where the data are those of a full recipe (a ``paper`` preset) without a change."""
    plain = config.to_dict()
    models = plain["teacher"]["model"], plain["student"]["model"]
    found = [(row, claimed(config.task, *models, row, metric)) for row in rows]
    claims = [Claim(row=row, value=p.value, source=p.source, protocol=p.protocol) for row, p in found if p is not None]
    full = [name for name in presets(config.task) if name.startswith("paper")] if claims else []
    return claims if any(config.data == preset(config.task, name).data for name in full) else []


@cache
def _load() -> list[Published]:
    """All entries, in the order of the file."""
    content = yaml.safe_load(resources.files("tgeokd.runs").joinpath("published.yaml").read_text())
    return [entry for table in content["tables"] for entry in _entries(table, content["sources"])]


def _entries(table: Mapping[str, Any], sources: Mapping[str, Any]) -> Iterator[Published]:
    def entry(teacher: str | None, student: str | None, method: str, value: float, source: str) -> Published:
        value = round(value * (0.01 if table.get("percent") else 1.0), 6)
        place = (table["task"], teacher, student, method, table["metric"])
        return Published(*place, value, **sources[source], needs=table.get("needs", {}))

    alone = table["alone"]
    for model, value in alone["values"].items():
        yield entry(model, None, "teacher", value, alone["source"])
        yield entry(None, model, "ce", value, alone["source"])
    for teacher, student, *values in table.get("pairs", []):
        for (method, source), value in zip(table["methods"].items(), values, strict=True):
            if value is not None:
                yield entry(teacher, student, method, value, source)
