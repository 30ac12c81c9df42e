"""`alpha-over-epochs`: the learned alpha of each group by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import TGEO, Differences
from tgeokd.paper.comparison import ComparisonAnalysis, group_gap, group_mean, histories
from tgeokd.paper.formatting import difference, interval, mean_text, verdict
from tgeokd.runs.results import RunRecord

_RIGHT_AGREE, _RIGHT_NOT, _WRONG_AGREE, _WRONG_NOT = GROUPS
CONTRASTS = {
    "teacher and label agree": ((_RIGHT_AGREE, _RIGHT_NOT), (_WRONG_AGREE, _WRONG_NOT)),
    "student and teacher agree": ((_RIGHT_AGREE, _WRONG_AGREE), (_RIGHT_NOT, _WRONG_NOT)),
}
"""A condition, the groups where it holds, and those where it does not."""


@ANALYSES.register("alpha-over-epochs")
class AlphaOverEpochs(ComparisonAnalysis):
    """Mean alpha over the training samples in every epoch of ``tgeo``, by group (:mod:`tgeokd.core.ratio_statistics`)."""

    rows: ClassVar = {"tgeo": TGEO}

    def collect(self, runs: Mapping[str, Sequence[RunRecord]], folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """By seed and epoch: mean alpha of all samples, and mean and count of each group."""

        def point(record: dict[str, Any]) -> dict[str, Any]:
            groups = {name: {key: record["alpha"][name][key] for key in ("mean", "count")} for name in GROUPS}
            return {"all": record["alpha_mean"], "groups": groups}

        curves = [[point(record) for record in history] for history in histories(folder, TGEO, seeds)]
        return {"groups": list(GROUPS), "seeds": curves}

    def differences(self, data: dict[str, Any]) -> Differences:
        """The last epoch less the first; in the last epoch, the two sides of each contrast."""
        last = [seed[-1]["groups"] for seed in data["seeds"]]
        moved = difference([seed[-1]["all"] - seed[0]["all"] for seed in data["seeds"]])
        return {"last epoch": moved} | {name: difference(group_gap(last, *sides)) for name, sides in CONTRASTS.items()}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """From the first to the last epoch; teacher right and wrong; student and teacher agreeing or not."""
        seeds, moved = data["seeds"], differences["last epoch"]
        start, end = (mean_text(seed[epoch]["all"] for seed in seeds) for epoch in (0, -1))
        conclusion = verdict(moved, "the weight of the teacher increases", "the weight of the label increases")
        lines = [f"Mean alpha is {start} in the first epoch and {end} in the last: {interval(moved)}, {conclusion}."]
        for name, sides in CONTRASTS.items():
            first, second = (mean_text(group_mean(seed[-1]["groups"], side) for seed in seeds) for side in sides)
            gap = f"{interval(differences[name])}, {verdict(differences[name], f'higher where {name}', 'lower there')}"
            lines.append(f"In the last epoch alpha is {first} where {name} and {second} elsewhere: {gap}.")
        return lines
