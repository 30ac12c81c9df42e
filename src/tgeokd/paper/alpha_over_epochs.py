"""`alpha-over-epochs`: how the learned alpha of each group develops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper.base import Findings
from tgeokd.paper.rows import compared, group_gap, group_mean, histories, shared_facts
from tgeokd.paper.wording import difference, interval, mean, shown, verdict
from tgeokd.report.figures import alpha_by_group
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import MethodSpec

__all__ = ["alpha_over_epochs", "lines"]

ROW = MethodSpec("tgeo")


def alpha_over_epochs(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Mean alpha over the training samples in every epoch, by group (:mod:`tgeokd.core.ratio_statistics`), under ``tgeo``."""
    results = compared(config, [ROW], seeds, out, jobs)
    records = histories(out, ROW, seeds)
    data = {"groups": list(GROUPS), "seeds": [_curves(history) for history in records], **shared_facts(results)}
    title = f"{config.task}: learned fusion ratio, {len(seeds)} seeds"
    return Findings(data, lines(data), partial(alpha_by_group, records, title=title))


def _curves(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean alpha of all samples, and of each group with the group's size, epoch by epoch."""
    keys = ("mean", "count")
    return [
        {"all": r["alpha_mean"], "groups": {name: {key: r["alpha"][name][key] for key in keys} for name in GROUPS}}
        for r in history
    ]


def _contrast(data: dict[str, Any], words: tuple[str, str], names: tuple[Sequence[str], Sequence[str]]) -> str:
    last = [seed[-1]["groups"] for seed in data["seeds"]]
    gap = difference([group_gap(groups, *names) for groups in last])
    first, second = (shown(mean(group_mean(groups, side) for groups in last)) for side in names)
    says = verdict(gap, f"higher where {words[0]}", f"higher where {words[1]}")
    return (
        f"In the last epoch alpha is {first} where {words[0]} and {second} where {words[1]}: {interval(gap)}, {says}."
    )


def lines(data: dict[str, Any]) -> list[str]:
    """From the first to the last epoch; teacher right against wrong; student agreeing or not."""
    seeds = data["seeds"]
    moved = difference([seed[-1]["all"] - seed[0]["all"] for seed in seeds])
    start, end = (shown(mean(seed[epoch]["all"] for seed in seeds)) for epoch in (0, -1))
    says = verdict(
        moved, "training leans more on the teacher at the end", "training leans more on the label at the end"
    )
    right_agree, right_not, wrong_agree, wrong_not = GROUPS
    return [
        f"Mean alpha goes from {start} in the first epoch to {end} in the last: {interval(moved)}, {says}.",
        _contrast(
            data,
            ("teacher and label agree", "they do not"),
            ((right_agree, right_not), (wrong_agree, wrong_not)),
        ),
        _contrast(
            data,
            ("student and teacher agree", "they do not"),
            ((right_agree, wrong_agree), (right_not, wrong_not)),
        ),
    ]
