"""`oversampling`: does it explain the gain, and was the teacher oversampled too?"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tgeokd.core.metrics import higher_is_better
from tgeokd.data import TASKS
from tgeokd.paper.base import Findings, kept, over_seeds
from tgeokd.paper.wording import difference, gained, mean, verdict
from tgeokd.report.analyses import draw_oversampling
from tgeokd.report.tables import formatted
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import Entry
from tgeokd.runs.single import check, run
from tgeokd.runs.statistics import PairedDifference
from tgeokd.runs.teacher import make_teacher
from tgeokd.utils.errors import InputError

__all__ = ["METHODS", "lines", "oversampling"]

METHODS = {"kd": Entry("kd", {"alpha": 0.5}), "tgeo": Entry("tgeo")}
WITH = {"plain": False, "oversampled": True}


def oversampling(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Test results of kd and tgeo with the training rows of teacher, student, both or neither oversampled.

    For a task with the option ``data.oversample``, which repeats training rows of the rarer classes until all are as frequent;
    held-out and test rows are the same in all four cases of a seed. ``kd`` has alpha 0.5, where ``tgeo`` starts.
    The rarest class is that with the fewest training rows; its recall is given where the task reports recall.
    """
    if "oversample" not in inspect.signature(TASKS[config.task]).parameters:
        raise InputError(f"task {config.task!r} has no option data.oversample")
    for over in WITH.values():
        for entry in METHODS.values():
            check(entry.apply(_with(dataclasses.replace(config, seed=seeds[0]), over)))
    found = over_seeds(_job, config, seeds, out, jobs)
    data = {"primary_metric": load_data(config).metrics.primary, "seeds": found}
    return Findings(data, lines(data), partial(draw_oversampling, data))


def _with(config: RunConfig, over: bool) -> RunConfig:
    return dataclasses.replace(config, data={**config.data, "oversample": over})


def _job(config: RunConfig, path: Path) -> dict[str, Any]:
    return kept(path, config, _measure)


def _measure(config: RunConfig) -> dict[str, Any]:
    """The test metrics of every case of a seed."""
    teachers, rows, sizes = [], [], {}
    rarest = None
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.safetensors" for name in WITH}
        for name, over in WITH.items():
            changed = _with(config, over)
            data = load_data(changed)
            target = torch.cat([batch[1] for batch in data.ordered_loader(data.train)])
            counts = target.bincount(minlength=data.num_classes)
            sizes[name] = counts.tolist()
            if not over:
                least = int(counts.masked_fill(counts == 0, len(target)).argmin())
                rarest = data.class_names[least] if data.class_names else str(least)
            teachers.append({"teacher": name, "metrics": make_teacher(changed, data, paths[name])})
        for student, over in WITH.items():
            for method, entry in METHODS.items():
                for teacher, path in paths.items():
                    result = run(entry.apply(_with(config, over)), path)
                    rows.append({"method": method, "teacher": teacher, "student": student, "metrics": result.metrics})
    return {"rarest": rarest, "training_rows": sizes, "teachers": teachers, "rows": rows}


def _metric(seed: dict[str, Any], metric: str, method: str, teacher: str, student: str) -> float | None:
    """A case's test value, None where the task does not report it."""
    wanted = {"method": method, "teacher": teacher, "student": student}
    (row,) = (row for row in seed["rows"] if wanted.items() <= row.items())
    value: float | None = row["metrics"].get(metric)
    return value


def _gains(data: dict[str, Any], case: str) -> list[float]:
    """What tgeo is better than kd by, one number a seed, with neither or both of teacher and student oversampled."""
    metric = data["primary_metric"]
    sign = 1.0 if higher_is_better(metric) else -1.0
    values = [[_metric(seed, metric, method, case, case) for method in ("tgeo", "kd")] for seed in data["seeds"]]
    return [sign * (tgeo - kd) for tgeo, kd in values if tgeo is not None and kd is not None]


def _change(data: dict[str, Any], method: str, teacher: str, student: str, *, recall: bool) -> PairedDifference | None:
    """What oversampling changes from a case without any, in the primary metric or the rarest class's recall."""
    changes: list[float | None] = []
    for seed in data["seeds"]:
        metric = f"recall/{seed['rarest']}" if recall else data["primary_metric"]
        sign = 1.0 if higher_is_better(metric) else -1.0
        plain, over = (_metric(seed, metric, method, *case) for case in (("plain", "plain"), (teacher, student)))
        changes.append(None if plain is None or over is None else sign * (over - plain))
    return difference(changes)


def explains(without: PairedDifference | None, with_: PairedDifference | None) -> str:
    """Whether oversampling explains a gain, from the gain without any and with both oversampled."""
    pair = (without, with_)
    if without is None or with_ is None or any(d is None or d.low is None for d in pair):
        return "not to be judged without intervals"
    assert without.low is not None
    assert with_.low is not None
    if without.low > 0:
        return "there is a gain without oversampling, so oversampling does not explain it"
    if with_.low > 0:
        return "there is a clear gain only with oversampling, which may explain it"
    return "no clear gain of tgeo over kd in either case, so there is nothing to explain"


def lines(data: dict[str, Any]) -> list[str]:
    """Whether the gain needs oversampling; what each of teacher and student does; the rarest class."""
    metric, seeds = data["primary_metric"], data["seeds"]
    without, with_ = (difference(_gains(data, case)) for case in WITH)
    told = []
    for who, case in (("teacher", ("oversampled", "plain")), ("student", ("plain", "oversampled"))):
        changes = {method: _change(data, method, *case, recall=False) for method in METHODS}
        parts = [f"{m} by {gained(d, metric)}, {verdict(d, 'better', 'worse')}" for m, d in changes.items()]
        told.append(f"oversampling the {who} alone changes {'; '.join(parts)}")
    rare = []
    for method in METHODS:
        values = [
            mean(_metric(seed, f"recall/{seed['rarest']}", method, case, case) for seed in seeds) for case in WITH
        ]
        change = _change(data, method, "oversampled", "oversampled", recall=True)
        recalls = " to ".join(formatted("recall", value) for value in values)
        rare.append(f"{method} {recalls} %, {gained(change, 'recall')}, {verdict(change, 'higher', 'lower')}")
    names = ", ".join(dict.fromkeys(str(seed["rarest"]) for seed in seeds))
    return [
        f"Gain of tgeo over kd in test {metric}: without oversampling {gained(without, metric)}, with teacher and student "
        f"oversampled {gained(with_, metric)}: {explains(without, with_)}.",
        f"Test {metric}: {'; '.join(told)}.",
        f"Recall of the rarest class ({names}) from no oversampling to both: {'; '.join(rare)}.",
    ]
