"""`fig1`: the best fixed alpha by whether the teacher is right and by the student-teacher distance."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.paper import ANALYSES
from tgeokd.paper.base import Differences, SeedAnalysis
from tgeokd.paper.formatting import difference, interval, subtract, verdict
from tgeokd.paper.predictions import discrepancy, new_teacher, probs, teacher_probs, trained
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig
from tgeokd.runs.results import MethodSpec

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
QUANTILES = 5
TEACHER = ("right", "wrong")

Floats = NDArray[np.float64]


@ANALYSES.register("fig1")
class Fig1(SeedAnalysis):
    """Test accuracy of students trained by ``kd`` with a fixed alpha, by group of test samples.

    The test samples are split by the teacher being right or wrong and, within each, into five groups of equal size by the
    distance of teacher and a reference student trained by ``ce``, nearest first; no compared student decides the groups.
    """

    rows: ClassVar = {"ce": MethodSpec("ce")} | {f"kd {a:g}": MethodSpec("kd", {"alpha": a}) for a in ALPHAS}
    facts: ClassVar = {"alphas": list(ALPHAS)}

    def measure_seed(self, config: RunConfig) -> dict[str, Any]:
        """Counts, sums of distances, and correct predictions of each alpha, each by (teacher right or wrong, group)."""
        data = load_data(config)
        teacher = new_teacher(config, data)
        batches = list(data.ordered_loader(data.test))
        target = torch.cat([batch[1] for batch in batches])
        T = teacher_probs(config, data, teacher, batches)
        reference, *students = (probs(trained(e.apply(config), data, teacher), batches) for e in self.rows.values())
        distance = discrepancy(reference, T)
        right = T.argmax(dim=-1) == target
        cell = torch.zeros_like(target)
        for row, chosen in enumerate((right, ~right)):
            cell[chosen] = row * QUANTILES + quantile_groups(distance[chosen])

        def by_cell(weights: Tensor | None = None) -> list[list[float]]:
            return torch.bincount(cell, weights, minlength=2 * QUANTILES).view(2, QUANTILES).tolist()

        correct = [by_cell((S.argmax(dim=-1) == target).double()) for S in students]
        return {"count": by_cell(), "distance_sum": by_cell(distance), "correct": correct}

    def differences(self, data: dict[str, Any]) -> Differences:
        """The largest alpha less the smallest where the teacher is right and wrong; choosing alpha by group."""
        seeds = data["seeds"]
        changes = [[_largest_less_smallest(seed, row) for seed in seeds] for row, _ in enumerate(TEACHER)]
        found = {f"teacher {name}": difference(values) for name, values in zip(TEACHER, changes, strict=True)}
        pays = [_by_group_less_one(seeds, i) for i in range(len(seeds))] if len(seeds) > 1 else []
        return found | {"right less wrong": difference(subtract(*changes)), "by group": difference(pays)}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """The best alpha of each group; teacher right and wrong; choosing alpha by group."""
        table = accuracies(data["seeds"])
        best = []
        for row, name in enumerate(TEACHER):
            each = ["-" if np.isnan(a).any() else f"{ALPHAS[int(a.argmax())]:g}" for a in table[:, row].T]
            n = int(_total(data["seeds"], "count")[row].sum())
            best.append(f"teacher {name} (n = {n}) {', '.join(each)}")
        right, wrong, gap, pays = (interval(d, "accuracy") for d in differences.values())
        alpha_for = "a larger alpha is better for samples on which the teacher is"
        sides = f"{alpha_for} right", f"{alpha_for} wrong, contrary to expectation"
        conclusion = verdict(differences["right less wrong"], *sides)
        better = verdict(differences["by group"], "the best alpha differs by group", "one alpha is better")
        third = f"Choosing alpha by group instead of one, both on the other seeds, changes test accuracy by {pays}: {better}."
        if differences["by group"] is None:
            third = "Whether choosing alpha by group is better than one alpha cannot be judged with one seed."
        return [
            f"Best fixed alpha by student-teacher distance, nearest fifth first: {'; '.join(best)}.",
            f"Alpha {ALPHAS[-1]:g} instead of {ALPHAS[0]:g} changes test accuracy by {right} where the teacher is right and "
            f"by {wrong} where it is wrong; difference {gap}: {conclusion}.",
            third,
        ]


def quantile_groups(values: Tensor, groups: int = QUANTILES) -> Tensor:
    """The group of each value (N,) among groups of equal size (within one), lowest values first; ties by position."""
    ranks = values.argsort(stable=True).argsort()
    return ranks * groups // max(len(values), 1)


def accuracies(seeds: Sequence[dict[str, Any]]) -> Floats:
    """Accuracy over the samples of all seeds, shape (alphas, 2, groups); NaN without samples."""
    count, correct = _total(seeds, "count"), _total(seeds, "correct")
    found: Floats = np.divide(correct, count, out=np.full(correct.shape, np.nan), where=count > 0)
    return found


def _total(seeds: Sequence[dict[str, Any]], key: str) -> Floats:
    total: Floats = np.asarray([seed[key] for seed in seeds], dtype=np.float64).sum(axis=0)
    return total


def _largest_less_smallest(seed: dict[str, Any], row: int) -> float | None:
    """Accuracy with the largest alpha less that with the smallest, over the samples of a row; None without samples."""
    n = sum(seed["count"][row])
    return (sum(seed["correct"][-1][row]) - sum(seed["correct"][0][row])) / n if n else None


def _by_group_less_one(seeds: Sequence[dict[str, Any]], judged: int) -> float:
    """Accuracy of the best alpha of each group less that of the best single alpha, both chosen on the other seeds."""
    correct = _total([s for i, s in enumerate(seeds) if i != judged], "correct")  # (alphas, 2, groups)
    own = np.asarray(seeds[judged]["correct"], dtype=float)
    each = np.take_along_axis(own, correct.argmax(axis=0)[None], axis=0).sum()
    one = own[int(correct.sum(axis=(1, 2)).argmax())].sum()
    return float((each - one) / np.sum(seeds[judged]["count"]))
