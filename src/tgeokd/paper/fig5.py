"""`fig5`: how far the student's prediction is from the teacher's on normal samples and outliers, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgeokd.data import TaskData
from tgeokd.paper.base import Findings, kept, over_seeds
from tgeokd.paper.outliers import feature_sd, noisy_inputs
from tgeokd.paper.training import (
    check_teacher_sees,
    discrepancy,
    drawn,
    new_teacher,
    probs,
    some_batches,
    teacher_probs,
    trained,
)
from tgeokd.paper.wording import difference, interval, mean, shown, verdict
from tgeokd.report.analyses import draw_fig5
from tgeokd.runs.build import load_data, use_threads
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.single import check
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import Distiller

__all__ = ["METHODS", "PAIRS", "fig5", "lines"]

MOST = 1000
"""Samples of the training and of the test set that are looked at after every epoch."""
METHODS = {"kd": MethodSpec("kd", {"alpha": 0.5}), "tgeo": MethodSpec("tgeo")}
PAIRS = {"train": ("train, clean label", "train, corrupted label"), "test": ("test, normal", "test, Gaussian noise")}
"""Normal samples and outliers of each part."""


def fig5(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Mean Euclidean distance of the student's and the teacher's probabilities after every epoch, by group, for kd and tgeo.

    On at most 1,000 random samples each: training samples with a clean and with a corrupted label (a task that knows of no
    wrong label has only ``train, clean label``), and test samples as they are and with Gaussian noise added to the inputs as
    in ``fig4``. ``kd`` has alpha 0.5, where ``tgeo`` starts. The student is in eval mode and training is the same as
    without looking. The test set is looked at; nothing is chosen on it.
    """
    check_teacher_sees(config, "fig5")
    for entry in METHODS.values():
        check(entry.apply(replace(config, seed=seeds[0])))
    found = over_seeds(_job, config, seeds, out, jobs)
    data = {"seeds": found}
    return Findings(data, lines(data), partial(draw_fig5, data, PAIRS))


class Watch(Callback):
    """Notes the mean distance of student and teacher on fixed samples after every epoch.

    Args:
        batches: by the name of a set of samples.
        teacher: the teacher's probabilities of each set, shape (N, C).
        members: for each group, its set and a mask of that set's samples, shape (N,).

    Attributes:
        curves: for each group the mean distance by epoch.
    """

    def __init__(
        self,
        batches: Mapping[str, Sequence[Any]],
        teacher: Mapping[str, Tensor],
        members: Mapping[str, tuple[str, Tensor]],
    ) -> None:
        self.batches, self.teacher, self.members = batches, teacher, members
        self.curves: dict[str, list[float]] = {name: [] for name in members}

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Measure."""
        distances = {
            name: discrepancy(probs(distiller, batches), self.teacher[name]) for name, batches in self.batches.items()
        }
        for name, (part, mask) in self.members.items():
            self.curves[name].append(float(distances[part][mask].mean()))


def _job(config: RunConfig, path: Path) -> dict[str, Any]:
    return kept(path, config, _measure)


def _measure(config: RunConfig) -> dict[str, Any]:
    """The curves of each method by group."""
    use_threads(config)
    data = load_data(config)
    teacher = new_teacher(config, data)
    batches, members = _samples(config, data)
    T = {name: teacher_probs(config, data, teacher, parts) for name, parts in batches.items()}
    curves = {}
    for name, entry in METHODS.items():
        watch = Watch(batches, T, members)
        trained(entry.apply(config), data, teacher, [watch])
        curves[name] = watch.curves
    return curves


def _samples(config: RunConfig, data: TaskData) -> tuple[dict[str, list[Any]], dict[str, tuple[str, Tensor]]]:
    """The sets to look at, and the groups with their set and mask."""
    rows = drawn(len(data.train), MOST, config.seed)  # type: ignore[arg-type]
    train = some_batches(data, data.train, rows)
    test = some_batches(data, data.test, drawn(len(data.test), MOST, config.seed))  # type: ignore[arg-type]
    batches = {"train": train, "test": test}
    wrong = torch.zeros(len(rows), dtype=torch.bool)
    if data.corrupted is not None:
        wrong = data.corrupted[torch.tensor(rows)]
    everything = torch.ones(sum(len(batch[1]) for batch in test), dtype=torch.bool)
    (clean, corrupted), (normal, noised) = PAIRS.values()
    members = {clean: ("train", ~wrong), corrupted: ("train", wrong), normal: ("test", everything)}
    if data.inputs.kind == "array" or data.inputs.shape[0] > 0:
        batches["noise"] = noisy_inputs(test, feature_sd(train), config.seed)
        members[noised] = ("noise", everything)
    return batches, {name: member for name, member in members.items() if member[1].any()}


def _gaps(data: dict[str, Any], method: str, part: str) -> list[float | None]:
    """Distance on outliers less that on normal samples after the last epoch, one a seed; None where a group is empty."""
    normal, outlier = PAIRS[part]
    curves = [seed[method] for seed in data["seeds"]]
    return [c[outlier][-1] - c[normal][-1] if normal in c and outlier in c else None for c in curves]


def _line(data: dict[str, Any], part: str) -> str:
    told = []
    for method in METHODS:
        gap = difference(_gaps(data, method, part))
        last = [
            shown(mean(s[method][name][-1] if name in s[method] else None for s in data["seeds"]))
            for name in PAIRS[part]
        ]
        says = verdict(gap, "farther from the teacher on the outliers", "nearer to the teacher on the outliers")
        told.append(f"{method} {last[1]} against {last[0]}, difference {interval(gap)}, {says}")
    normal, outlier = PAIRS[part]
    return f"Student-teacher distance after the last epoch, {outlier} against {normal}: {'; '.join(told)}."


def lines(data: dict[str, Any]) -> list[str]:
    """Outliers against normal samples in training and in the test, and whether tgeo sets them further apart than kd."""
    third = []
    for part in PAIRS:
        pairs = zip(_gaps(data, "tgeo", part), _gaps(data, "kd", part), strict=True)
        more = difference([a - b if a is not None and b is not None else None for a, b in pairs])
        says = verdict(more, "tgeo tells outliers apart more than kd", "tgeo tells outliers apart less than kd")
        third.append(f"{part} {interval(more)}, {says}")
    return [
        _line(data, "train"),
        _line(data, "test"),
        f"That difference under tgeo less the one under kd: {'; '.join(third)}.",
    ]
