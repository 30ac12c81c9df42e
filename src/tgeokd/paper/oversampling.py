"""`oversampling`: whether it explains the gain, for the teacher and the student separately."""

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tgeokd.core.metrics import formatted
from tgeokd.data import TASKS
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import Differences, SeedAnalysis
from tgeokd.paper.comparison import gain_text
from tgeokd.paper.formatting import improvement, interval, mean, verdict
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.single import run
from tgeokd.runs.statistics import PairedTest
from tgeokd.runs.teacher import build_teacher
from tgeokd.utils.errors import InputError

WITH = {"plain": False, "oversampled": True}
CASES = [(teacher, student) for teacher in WITH for student in WITH]
NEITHER, STUDENT, TEACHER, BOTH = CASES
RECALL = "recall"
"""Stands for the recall of each seed's rarest class."""


@ANALYSES.register("oversampling")
class Oversampling(SeedAnalysis):
    """Test results of kd and tgeo with the training rows of teacher, student, both or neither oversampled.

    For a task with the option ``data.oversample``. The rarest class is the one with the fewest training rows; its recall is
    reported where the task reports recall.
    """

    task = "hil"

    def validate(self, config: RunConfig) -> None:
        """The task must have the option."""
        if "oversample" not in inspect.signature(TASKS[config.task]).parameters:
            raise InputError(
                f"task {config.task!r} has no option data.oversample; hil, nsl_kdd, tabular and adult have it"
            )
        for over in WITH.values():
            super().validate(_with(config, over))

    def measure(self, config: RunConfig, seeds: Sequence[int], out: Path, processes: int | None) -> dict[str, Any]:
        """The cases of every seed."""
        found = super().measure(config, seeds, out, processes)
        return {"primary_metric": load_data(config).metrics.primary, **found}

    def measure_seed(self, config: RunConfig) -> dict[str, Any]:
        """The test metrics of every case."""
        teachers, rows, sizes, rarest = [], [], {}, ""
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
                teachers.append({"teacher": name, "metrics": build_teacher(changed, data, paths[name])})
            for student, over in WITH.items():
                for method, entry in self.rows.items():
                    for teacher, path in paths.items():
                        metrics = run(entry.apply(_with(config, over)), path).metrics
                        rows.append({"method": method, "teacher": teacher, "student": student, "metrics": metrics})
        return {"rarest": rarest, "training_rows": sizes, "teachers": teachers, "rows": rows}

    def differences(self, data: dict[str, Any]) -> Differences:
        """Gains of tgeo over kd; the effect of oversampling teacher or student alone; the rarest class, neither to both."""
        metric = data["primary_metric"]

        def better(key: str, own: tuple[str, str, str], other: tuple[str, str, str]) -> PairedTest | None:
            return improvement(key, values(data, key, *own), values(data, key, *other))

        found = {}
        for name, case in (("neither", NEITHER), ("both", BOTH)):
            found[f"tgeo over kd, {name}"] = better(metric, ("tgeo", *case), ("kd", *case))
        for method in self.rows:
            for name, case in (("teacher", TEACHER), ("student", STUDENT)):
                found[f"{name} alone, {method}"] = better(metric, (method, *case), (method, *NEITHER))
            found[f"rarest class, {method}"] = better(RECALL, (method, *BOTH), (method, *NEITHER))
        return found

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Whether the gain needs oversampling; the effect on teacher and student; the rarest class."""
        metric = data["primary_metric"]
        without, with_ = differences["tgeo over kd, neither"], differences["tgeo over kd, both"]
        effects, rare = [], []
        for name in ("teacher", "student"):
            texts = [f"{m} by {gain_text(differences[f'{name} alone, {m}'], metric)}" for m in self.rows]
            effects.append(f"oversampling the {name} alone changes {'; '.join(texts)}")
        for method in self.rows:
            change = differences[f"rarest class, {method}"]
            recalls = [formatted(RECALL, mean(values(data, RECALL, method, *case))) for case in (NEITHER, BOTH)]
            conclusion = f"{interval(change, RECALL)}, {verdict(change, 'higher', 'lower')}"
            rare.append(f"{method} {' to '.join(recalls)} %, {conclusion}")
        names = ", ".join(dict.fromkeys(str(seed["rarest"]) for seed in data["seeds"]))
        return [
            f"Gain of tgeo over kd in test {metric}: without oversampling {interval(without, metric)}, with teacher "
            f"and student oversampled {interval(with_, metric)}: {explanation(without, with_)}.",
            f"Test {metric}: {'; '.join(effects)}.",
            f"Recall of the rarest class ({names}), neither oversampled to both: {'; '.join(rare)}.",
        ]


def values(data: Mapping[str, Any], metric: str, method: str, teacher: str, student: str) -> list[float | None]:
    """A case's test value by seed, None where the task does not report it."""
    wanted = {"method": method, "teacher": teacher, "student": student}
    found = []
    for seed in data["seeds"]:
        (row,) = (row for row in seed["rows"] if wanted.items() <= row.items())
        found.append(row["metrics"].get(f"recall/{seed['rarest']}" if metric == RECALL else metric))
    return found


def explanation(without: PairedTest | None, with_: PairedTest | None) -> str:
    """Whether oversampling explains a gain, from the gains with neither and with both oversampled."""
    if without is None or with_ is None or without.low is None or with_.low is None:
        return "no conclusion without intervals"
    if without.low > 0:
        return "the gain exists without oversampling, so oversampling does not explain it"
    if with_.low > 0:
        return "the gain is clear only with oversampling, which may explain it"
    return "no clear gain of tgeo over kd in either case, so there is nothing to explain"


def _with(config: RunConfig, over: bool) -> RunConfig:
    return replace(config, data={**config.data, "oversample": over})
