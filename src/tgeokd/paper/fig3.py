"""`fig3`: the learned alpha with and without the edge between student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper.base import Findings
from tgeokd.paper.rows import compared, gain, group_gap, group_mean, histories, shared_facts
from tgeokd.paper.wording import difference, gained, interval, mean, shown, verdict
from tgeokd.report.analyses import draw_fig3
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import MethodSpec

__all__ = ["ROWS", "fig3", "lines"]

ROWS = {edge: MethodSpec("tgeo", {"student_teacher_edge": edge == "with"}) for edge in ("with", "without")}


def fig3(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Distribution of the learned alpha over the training samples in the last epoch, by group, with and without the edge.

    The groups are those of :mod:`tgeokd.core.ratio_statistics`: the teacher's most probable class is the label or not, and
    student and teacher agree (overlap by a half) or not. Without the edge S-T the ratio network does not see how far
    the two are apart.
    """
    results = compared(config, list(ROWS.values()), seeds, out, jobs)
    alpha = {edge: [history[-1]["alpha"] for history in histories(out, row, seeds)] for edge, row in ROWS.items()}
    data = {"groups": list(GROUPS), "alpha": alpha, **shared_facts(results)}
    return Findings(data, lines(data), partial(draw_fig3, data))


def _contrast(data: dict[str, Any], names: Sequence[str], less: Sequence[str]) -> str:
    """How far the mean alpha of some groups is from that of others, with and without the edge, and what the edge changes."""
    gaps = {edge: [group_gap(seed, names, less) for seed in data["alpha"][edge]] for edge in ROWS}
    pairs = zip(gaps["with"], gaps["without"], strict=True)
    wider = difference([abs(a) - abs(b) if a is not None and b is not None else None for a, b in pairs])
    says = verdict(wider, "the edge sets them further apart", "the edge brings them closer together")
    each = ", ".join(f"{interval(difference(values))} {edge} the edge S-T" for edge, values in gaps.items())
    return f"{each}; farther apart with it by {interval(wider)}: {says}" if wider else f"{each}, a group being empty"


def lines(data: dict[str, Any]) -> list[str]:
    """Teacher wrong against right; student disagreeing against agreeing; what the edge is worth."""
    right_agree, right_not, wrong_agree, wrong_not = GROUPS
    right, wrong = (right_agree, right_not), (wrong_agree, wrong_not)
    means = []
    for edge in ROWS:
        values = [shown(mean(group_mean(seed, names) for seed in data["alpha"][edge])) for names in (right, wrong)]
        means.append(f"{values[0]} and {values[1]} {edge} the edge S-T")
    worth = gain(data, ROWS["with"].label, ROWS["without"].label)
    metric = data["primary_metric"]
    return [
        f"Mean alpha where the teacher is the label and where it is not: {', '.join(means)}; the second less the first: "
        f"{_contrast(data, wrong, right)}.",
        "Alpha where the student disagrees with the teacher less where it agrees: teacher right "
        f"{_contrast(data, [right_not], [right_agree])}; teacher wrong {_contrast(data, [wrong_not], [wrong_agree])}.",
        f"The edge S-T changes test {metric} by {gained(worth, metric)} (positive is better): "
        f"{verdict(worth, 'the edge helps', 'the edge hurts')}.",
    ]
