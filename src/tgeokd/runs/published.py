"""Published results to hold a run's own against: the column "claimed" beside "reproduced"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

__all__ = ["Published", "claimed"]


@dataclass(frozen=True)
class Published:
    """A number that a source claims.

    Attributes:
        task: name of the task; the full data set is meant.
        teacher: name of the teacher's model; None for plain training.
        student: name of the student's model; None for the teacher's own result.
        method: name of the method, ``dkd+lskd`` for ``dkd`` with standardised logits, ``teacher`` for its own result.
        metric: key of the metric, as in a run's results.
        value: in the metric's unit; accuracy in [0, 1].
        source: who claims it.
        protocol: which epoch is reported, and what it was chosen on.
    """

    task: str
    teacher: str | None
    student: str | None
    method: str
    metric: str
    value: float
    source: str
    protocol: str


def claimed(
    task: str,
    teacher: str | Mapping[str, Any],
    student: str | Mapping[str, Any],
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    metric: str | None = None,
) -> Published | None:
    """What is published for a row of a comparison, None where nothing is.

    The number is the source's best setting of the method on the full data: show it only where the run's data are full.

    Args:
        task: name of the task.
        teacher: name of its model, or name and options as in ``teacher.model`` of a config. Ignored for ``ce``.
        student: the same of the student. Ignored for ``teacher``.
        method: name of the method, or ``teacher``.
        options: of the method; ``standardise`` tells the two kinds of ``dkd`` apart, the others do not matter.
        metric: key of the metric; by default the one the task's sources report first.
    """
    method = {"ls": "lskd"}.get(method, method)  # its earlier name
    if method == "dkd" and options and options.get("standardise"):
        method = "dkd+lskd"
    for entry, needs in _load():
        fits = (
            entry.task == task
            and entry.method == method
            and metric in (None, entry.metric)
            and _is(teacher, entry.teacher, needs)
            and _is(student, entry.student, needs)
        )
        if fits:
            return entry
    return None


def _is(given: str | Mapping[str, Any], wanted: str | None, needs: Mapping[str, Any]) -> bool:
    """Whether a model is the one of that name with the options needed."""
    if wanted is None:
        return True
    model = {"name": given} if isinstance(given, str) else given
    return model.get("name") == wanted and all(_plain(model.get(key)) == value for key, value in needs.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@cache
def _load() -> tuple[tuple[Published, Mapping[str, Any]], ...]:
    """All entries, each with the options that its models need, in the order of the file."""
    content = yaml.safe_load(resources.files("tgeokd.runs").joinpath("published.yaml").read_text())
    found = []
    for table in content["tables"]:
        scale = 0.01 if table.get("percent") else 1.0
        for teacher, student, method, value, source in _numbers(table):
            origin = content["sources"][source]
            place = (table["task"], teacher, student, method, table["metric"])
            entry = Published(*place, round(value * scale, 6), origin["name"], origin["protocol"])
            found.append((entry, table.get("needs", {})))
    return tuple(found)


def _numbers(table: Mapping[str, Any]) -> Iterator[tuple[str | None, str | None, str, float, str]]:
    """Teacher, student, method, number and key of the source of each number of a table."""
    source = table["alone"]["source"]
    for model, value in table["alone"]["values"].items():
        yield model, None, "teacher", value, source
        yield None, model, "ce", value, source
    for teacher, student, *values in table.get("pairs", []):
        for (method, origin), number in zip(table["methods"].items(), values, strict=True):
            if number is not None:
                yield teacher, student, method, number, origin
