"""`fig1`: which fixed alpha suits which samples, by whether the teacher is right and how far the student is from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.paper.base import Findings, kept, over_seeds
from tgeokd.paper.training import discrepancy, new_teacher, probs, teacher_probs, trained
from tgeokd.paper.wording import difference, gained, verdict
from tgeokd.report.analyses import draw_fig1
from tgeokd.runs.build import load_data, use_threads
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.single import check

__all__ = ["ALPHAS", "GROUPS", "fig1", "lines", "quantile_groups"]

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUPS = 5
ROWS = ("right", "wrong")

Floats = NDArray[np.float64]


def fig1(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Test accuracy of students with a fixed alpha, by group of test samples.

    For each seed: a teacher; a reference student trained by ``ce``; students by ``kd`` with alpha 0.1, 0.3, 0.5, 0.7, 0.9.
    A test sample belongs to the teacher's right or wrong ones (its most probable class is the label or not) and, within
    these, to one of five groups of equal size by the Euclidean distance of the reference student's and the teacher's
    probabilities, nearest first. The groups are made within right and wrong, so that none is empty; what distance each stands
    for is in the data. The reference is none of the compared students: nobody is judged on groups of its own making.
    The test set is looked at; nothing that is trained depends on it.
    """
    first = replace(config, seed=seeds[0])
    for entry in _entries():
        check(entry.apply(first))
    found = over_seeds(_job, config, seeds, out, jobs)
    data = {"alphas": list(ALPHAS), "seeds": found}
    return Findings(data, lines(data), partial(draw_fig1, data))


def quantile_groups(values: Tensor, groups: int = GROUPS) -> Tensor:
    """Which of so many groups of equal size (to one) each value belongs to, the lowest first; equal values by their place.

    Args:
        values: shape (N,).
        groups: how many.

    Returns:
        Shape (N,), int64, in [0, groups).
    """
    ranks = values.argsort(stable=True).argsort()
    return ranks * groups // max(len(values), 1)


def _entries() -> list[MethodSpec]:
    return [MethodSpec("ce"), *(MethodSpec("kd", {"alpha": alpha}) for alpha in ALPHAS)]


def _job(config: RunConfig, path: Path) -> dict[str, Any]:
    return kept(path, config, _measure)


def _measure(config: RunConfig) -> dict[str, Any]:
    """Counts, mean distance and right answers of each alpha, each by (right or wrong, group)."""
    use_threads(config)
    data = load_data(config)
    teacher = new_teacher(config, data)
    batches = list(data.ordered_loader(data.test))
    target = torch.cat([batch[1] for batch in batches])
    T = teacher_probs(config, data, teacher, batches)
    reference, *students = (probs(trained(e.apply(config), data, teacher), batches) for e in _entries())
    distance = discrepancy(reference, T)
    cell = torch.zeros_like(target)
    for row, chosen in enumerate((T.argmax(dim=-1) == target, T.argmax(dim=-1) != target)):
        cell[chosen] = row * GROUPS + quantile_groups(distance[chosen])

    def by_cell(weights: Tensor | None = None) -> list[list[float]]:
        sums = torch.bincount(cell, weights, minlength=len(ROWS) * GROUPS)
        table: list[list[float]] = sums.view(len(ROWS), GROUPS).tolist()
        return table

    correct = [by_cell((S.argmax(dim=-1) == target).double()) for S in students]
    return {"count": by_cell(), "distance_sum": by_cell(distance), "correct": correct}


def accuracies(seeds: Sequence[dict[str, Any]]) -> Floats:
    """Accuracy over all seeds' samples by alpha, right or wrong, group: shape (A, 2, 5); NaN where there is no sample."""
    count, correct = _total(seeds, "count"), _total(seeds, "correct")
    found: Floats = np.divide(correct, count, out=np.full(correct.shape, np.nan), where=count > 0)
    return found


def _total(seeds: Sequence[dict[str, Any]], key: str) -> Floats:
    total: Floats = np.sum([np.asarray(seed[key], dtype=np.float64) for seed in seeds], axis=0)
    return total


def _more_teacher(seed: dict[str, Any], row: int) -> float | None:
    """What the largest alpha instead of the smallest changes in the accuracy of a row's samples, None without samples."""
    n = sum(seed["count"][row])
    return (sum(seed["correct"][-1][row]) - sum(seed["correct"][0][row])) / n if n else None


def _chosen_by_group(seeds: Sequence[dict[str, Any]], judged: int) -> float:
    """Accuracy of the best alpha of each group less that of the best alpha for all, both chosen on the other seeds."""
    correct = _total([s for i, s in enumerate(seeds) if i != judged], "correct")  # (A, 2, 5)
    own = np.asarray(seeds[judged]["correct"], dtype=float)
    each = np.take_along_axis(own, correct.argmax(axis=0)[None], axis=0).sum()
    one = own[int(correct.sum(axis=(1, 2)).argmax())].sum()
    return float((each - one) / np.sum(seeds[judged]["count"]))


def lines(data: dict[str, Any]) -> list[str]:
    """Which alpha is best where; whether right and wrong differ; whether choosing by group would pay."""
    seeds, table = data["seeds"], accuracies(data["seeds"])
    best = []
    for row, name in enumerate(ROWS):
        groups = [table[:, row, g] for g in range(GROUPS)]
        each = ["-" if np.isnan(a).any() else f"{data['alphas'][int(a.argmax())]:g}" for a in groups]
        n = int(sum(sum(s["count"][row]) for s in seeds))
        best.append(f"where the teacher is {name} (n = {n}) {', '.join(each)}")
    first = f"Best fixed alpha by student-teacher distance, nearest fifth first: {'; '.join(best)}."

    low, high = data["alphas"][0], data["alphas"][-1]
    changes = [[_more_teacher(s, row) for s in seeds] for row in (0, 1)]
    right, wrong = (gained(difference(c), "accuracy") for c in changes)
    gap = difference([r - w if r is not None and w is not None else None for r, w in zip(*changes, strict=True)])
    says = verdict(
        gap,
        "a larger alpha suits samples with a right teacher better",
        "a larger alpha suits samples with a wrong teacher better, the opposite of what is expected",
    )
    second = (
        f"Alpha {high:g} instead of {low:g} changes test accuracy by {right} where the teacher is right and by {wrong} "
        f"where it is wrong; difference {gained(gap, 'accuracy')}: {says}."
    )
    if len(seeds) < 2:
        return [first, second, "Whether an alpha for each group beats one for all takes two seeds: one to choose on."]
    pays = difference([_chosen_by_group(seeds, i) for i in range(len(seeds))])
    says = verdict(pays, "the best alpha differs between groups", "one alpha for all is better")
    return [
        first,
        second,
        f"An alpha for each group instead of one for all, both chosen on the other seeds, changes test accuracy by "
        f"{gained(pays, 'accuracy')}: {says}.",
    ]
