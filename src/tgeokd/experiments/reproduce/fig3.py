"""`fig3`: the learned alpha with and without the edge between student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.experiments.compare import Entry
from tgeokd.experiments.config import RunConfig
from tgeokd.experiments.reproduce.base import Findings
from tgeokd.experiments.reproduce.rows import compared, gain, histories, shared_facts
from tgeokd.experiments.reproduce.wording import difference, gained, interval, mean, shown, verdict
from tgeokd.ratios import GROUPS
from tgeokd.report.analyses import draw_fig3

__all__ = ["ROWS", "fig3", "lines"]

ROWS = {edge: Entry("tgeo", {"student_teacher_edge": edge == "with"}) for edge in ("with", "without")}


def fig3(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Distribution of the learned alpha over the training samples in the last epoch, by group, with and without the edge.

    The groups are those of :mod:`tgeokd.ratios`: the teacher's most probable class is the label or not, and student and
    teacher agree (overlap by a half) or not. Without the edge S-T the ratio network does not see how far the two are apart.
    """
    results = compared(config, list(ROWS.values()), seeds, out, jobs)
    alpha = {edge: [history[-1]["alpha"] for history in histories(out, row, seeds)] for edge, row in ROWS.items()}
    data = {"groups": list(GROUPS), "alpha": alpha, **shared_facts(results)}
    return Findings(data, lines(data), partial(draw_fig3, data))


def _apart(seed: dict[str, Any], teacher: str) -> float | None:
    """Mean alpha where student and teacher agree less that where they do not, None where one of the groups is empty."""
    agree, not_ = (seed[f"teacher_{teacher}_{state}"]["mean"] for state in ("agree", "disagree"))
    return None if agree is None or not_ is None else agree - not_


def _line(data: dict[str, Any], teacher: str) -> str:
    alpha = data["alpha"]
    parts = []
    for edge in ROWS:
        means = [
            shown(mean(s[f"teacher_{teacher}_{state}"]["mean"] for s in alpha[edge])) for state in ("agree", "disagree")
        ]
        apart = difference([_apart(s, teacher) for s in alpha[edge]])
        parts.append(
            f"{edge} the edge S-T mean alpha is {means[0]} (student agrees) and {means[1]} (disagrees), "
            f"apart by {interval(apart)}"
        )
    pairs = [(_apart(a, teacher), _apart(b, teacher)) for a, b in zip(alpha["with"], alpha["without"], strict=True)]
    wider = difference([abs(a) - abs(b) if a is not None and b is not None else None for a, b in pairs])
    says = verdict(wider, "the edge sets the groups further apart", "the edge brings the groups closer together")
    return f"Teacher {teacher}: {'; '.join(parts)}; the edge changes the distance of the groups by {interval(wider)}: {says}."


def lines(data: dict[str, Any]) -> list[str]:
    """The group means where the teacher is right and where it is wrong, and what the edge is worth."""
    worth = gain(data, ROWS["with"].label, ROWS["without"].label)
    says = verdict(worth, "the edge helps", "the edge hurts")
    metric = data["primary_metric"]
    return [
        _line(data, "right"),
        _line(data, "wrong"),
        f"The edge S-T changes test {metric} by {gained(worth, metric)} (positive is better): {says}.",
    ]
