"""`fig3`: the learned alpha with and without the edge between student and teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import RATIO_ALONE, Differences
from tgeokd.paper.comparison import ComparisonAnalysis, gain, group_gap, group_mean, histories
from tgeokd.paper.formatting import difference, interval, mean_text, subtract, verdict
from tgeokd.runs.results import MethodSpec, RunRecord

_RIGHT_AGREE, _RIGHT_NOT, _WRONG_AGREE, _WRONG_NOT = GROUPS
_RIGHT, _WRONG = (_RIGHT_AGREE, _RIGHT_NOT), (_WRONG_AGREE, _WRONG_NOT)
CONTRASTS = {
    "teacher wrong less right": (_WRONG, _RIGHT),
    "teacher right, student disagrees less agrees": ([_RIGHT_NOT], [_RIGHT_AGREE]),
    "teacher wrong, student disagrees less agrees": ([_WRONG_NOT], [_WRONG_AGREE]),
}
"""The groups whose mean alpha is compared."""


@ANALYSES.register("fig3")
class Fig3(ComparisonAnalysis):
    """Learned alpha of the training samples in the last epoch with and without the edge S-T, by group.

    The groups are those of :mod:`tgeokd.core.ratio_statistics`.
    """

    rows: ClassVar = {
        e: MethodSpec("tgeo", RATIO_ALONE | {"student_teacher_edge": e == "with"}) for e in ("with", "without")
    }

    def collect(self, runs: Mapping[str, Sequence[RunRecord]], folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """The groups of the last epoch, by row and seed."""
        last = {name: [run[-1]["alpha"] for run in histories(folder, row, seeds)] for name, row in self.rows.items()}
        return {"groups": list(GROUPS), "alpha": last}

    def differences(self, data: dict[str, Any]) -> Differences:
        """Each contrast with and without the edge, the change of its size by the edge, and the edge's gain."""
        found: Differences = {}
        for name, sides in CONTRASTS.items():
            gaps = {edge: group_gap(seeds, *sides) for edge, seeds in data["alpha"].items()}
            found |= {f"{name}, {edge}": difference(values) for edge, values in gaps.items()}
            sizes = ([None if gap is None else abs(gap) for gap in values] for values in gaps.values())
            found[f"{name}, larger with"] = difference(subtract(*sizes))
        return found | {"gain": gain(data, "with", "without")}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Teacher wrong and right; student disagreeing and agreeing; the gain of the edge."""
        texts = {}
        for name in CONTRASTS:
            larger = differences[f"{name}, larger with"]
            conclusion = verdict(larger, "the edge increases the difference", "the edge decreases the difference")
            each = ", ".join(f"{interval(differences[f'{name}, {edge}'])} {edge} the edge S-T" for edge in self.rows)
            texts[name] = f"{each}; change of its size by the edge {interval(larger)}: {conclusion}"
        means = ", ".join(
            " and ".join(mean_text(group_mean(seed, names) for seed in seeds) for names in (_RIGHT, _WRONG))
            + f" {edge} the edge S-T"
            for edge, seeds in data["alpha"].items()
        )
        first, second, third = texts.values()
        worth, metric = differences["gain"], data["primary_metric"]
        return [
            f"Mean alpha where the teacher is right and where it is wrong: {means}; the second less the first: {first}.",
            "Alpha where student and teacher disagree less alpha where they agree: teacher right "
            f"{second}; teacher wrong {third}.",
            f"The edge S-T changes test {metric} by {interval(worth, metric)} (positive is better): "
            f"{verdict(worth, 'the edge helps', 'the edge hurts')}.",
        ]
