"""`fig5`: the distance between the student's and the teacher's predictions on normal samples and outliers, by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.data import TaskData
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import Differences, SeedAnalysis
from tgeokd.paper.formatting import difference, interval, mean_text, subtract, verdict
from tgeokd.paper.outliers import feature_sd, has_numbers, noisy_inputs
from tgeokd.paper.predictions import discrepancy, new_teacher, probs, sample, teacher_probs, trained
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import Distiller

MOST = 1000  # samples of each set that are evaluated after every epoch
PAIRS = {"train": ("train, clean label", "train, corrupted label"), "test": ("test, normal", "test, Gaussian noise")}
"""Normal samples and outliers of each split."""
Groups = Mapping[str, tuple[str, Tensor]]


class DistanceCallback(Callback):
    """Records the mean distance of student and teacher on fixed samples after every epoch, by group, in ``curves``.

    Args:
        batches: by the name of a set of samples.
        teacher: the teacher's probabilities of each set, shape (N, C).
        groups: for each group, its set and a mask of that set's samples, shape (N,).
    """

    def __init__(self, batches: Mapping[str, Sequence[Any]], teacher: Mapping[str, Tensor], groups: Groups) -> None:
        self.batches, self.teacher, self.groups = batches, teacher, groups
        self.curves: dict[str, list[float]] = {name: [] for name in groups}

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Measure."""
        distances = {name: discrepancy(probs(distiller, of), self.teacher[name]) for name, of in self.batches.items()}
        for name, (of, mask) in self.groups.items():
            self.curves[name].append(float(distances[of][mask].mean()))


@ANALYSES.register("fig5")
class Fig5(SeedAnalysis):
    """Mean Euclidean distance of the student's and the teacher's probabilities after every epoch, for kd and tgeo.

    By group: training samples with clean and with known wrong labels; test samples unchanged and with noise as in ``fig4``.
    """

    facts: ClassVar = {"pairs": {split: list(names) for split, names in PAIRS.items()}}
    changes_inputs = True

    def measure_seed(self, config: RunConfig) -> dict[str, Any]:
        """The curves of each method by group."""
        data = load_data(config)
        teacher = new_teacher(config, data)
        batches, groups = _samples(config, data)
        T = {name: teacher_probs(config, data, teacher, of) for name, of in batches.items()}
        curves = {}
        for name, entry in self.rows.items():
            callback = DistanceCallback(batches, T, groups)
            trained(entry.apply(config), data, teacher, [callback])
            curves[name] = callback.curves
        return curves

    def differences(self, data: dict[str, Any]) -> Differences:
        """Distance on outliers less that on normal samples after the last epoch, and this of tgeo less that of kd."""
        found: Differences = {}
        for split, (normal, outlier) in PAIRS.items():
            gaps = {name: subtract(_last(data, name, outlier), _last(data, name, normal)) for name in self.rows}
            found |= {f"{split}, {name}": difference(values) for name, values in gaps.items()}
            found[f"{split}, tgeo less kd"] = difference(subtract(gaps["tgeo"], gaps["kd"]))
        return found

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Training samples; test samples; tgeo compared with kd."""
        lines, more = [], []
        for split, (normal, outlier) in PAIRS.items():
            texts = []
            for name in self.rows:
                gap = differences[f"{split}, {name}"]
                own, other = (mean_text(_last(data, name, group)) for group in (outlier, normal))
                conclusion = verdict(gap, "farther from the teacher on outliers", "nearer to the teacher on outliers")
                texts.append(f"{name} {own} compared with {other}, difference {interval(gap)}, {conclusion}")
            lines.append(
                f"Student-teacher distance after the last epoch, {outlier} compared with {normal}: {'; '.join(texts)}."
            )
            gap = differences[f"{split}, tgeo less kd"]
            more.append(f"{split} {interval(gap)}, {verdict(gap, 'larger with tgeo', 'smaller with tgeo')}")
        return [*lines, f"This difference of tgeo less that of kd: {'; '.join(more)}."]


def _samples(config: RunConfig, data: TaskData) -> tuple[dict[str, list[Any]], Groups]:
    """The evaluated sets, and the groups with their set and mask."""
    rows, train = sample(data, data.train, MOST, config.seed)
    chosen, test = sample(data, data.test, MOST, config.seed)
    batches = {"train": train, "test": test}
    wrong = torch.zeros(len(rows), dtype=torch.bool) if data.corrupted is None else data.corrupted[torch.tensor(rows)]
    everything = torch.ones(len(chosen), dtype=torch.bool)
    (clean, corrupted), (normal, noised) = PAIRS.values()
    groups = {clean: ("train", ~wrong), corrupted: ("train", wrong), normal: ("test", everything)}
    if has_numbers(data):
        batches["noise"] = noisy_inputs(test, feature_sd(train), config.seed)
        groups[noised] = ("noise", everything)
    return batches, {name: group for name, group in groups.items() if group[1].any()}


def _last(data: dict[str, Any], method: str, group: str) -> list[float | None]:
    """Distance of a group after the last epoch, by seed; None where the group is empty."""
    return [seed[method][group][-1] if group in seed[method] else None for seed in data["seeds"]]
