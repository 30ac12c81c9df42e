"""`ablation`: which part of the geometry is worth what."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tgeokd.paper.base import Findings
from tgeokd.paper.rows import compared, gain, primary_of, shared_facts
from tgeokd.paper.wording import gained, mean, verdict
from tgeokd.report.analyses import draw_ablation
from tgeokd.report.tables import formatted
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import MethodSpec

__all__ = ["FULL", "ROWS", "ablation", "lines"]


def _scalar(**options: Any) -> MethodSpec:
    return MethodSpec("tgeo", {"encoding": "scalar", **options})


FULL = "SG + TG + ST + inter-sample"
ROWS = {
    "kd": MethodSpec("kd", {"alpha": 0.5}),
    "SG + TG": _scalar(student_teacher_edge=False, inter_sample=False),
    "SG + TG + ST": _scalar(inter_sample=False),
    FULL: _scalar(),
    "vertices": _scalar(edges=False, angles=False),
    "edges": _scalar(vertices=False, angles=False),
    "angles": _scalar(vertices=False, edges=False, angles=True),
    "vertices + edges": _scalar(angles=False),
    "vector encoding": MethodSpec("tgeo", {"encoding": "vector"}),
}


def ablation(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Test results by what of the geometry the ratio network sees; paired differences to the full scalar encoding.

    The paper's steps: the edges student-label and teacher-label alone (SG + TG; with the vertices S and T, and G), then the
    edge student-teacher and the angles that come with it (+ ST), then the triangle of the teacher's class average
    (+ inter-sample, everything). Then kinds of features, all triangles: vertices, edges, angles each alone, and all but the
    angles. Then the vector encoding of 9C numbers. ``kd`` with alpha 0.5, where ``tgeo`` starts, for reference.
    """
    results = compared(config, list(ROWS.values()), seeds, out, jobs)
    data = {"rows": {name: entry.label for name, entry in ROWS.items()}, "full": FULL, **shared_facts(results)}
    return Findings(data, lines(data), partial(draw_ablation, data))


def _value(data: dict[str, Any], name: str) -> str:
    metric = data["primary_metric"]
    return f"{name} {formatted(metric, mean(primary_of(data, ROWS[name].label).values()))}"


def _step(data: dict[str, Any], name: str, over: str) -> str:
    step = gain(data, ROWS[name].label, ROWS[over].label)
    return f"{gained(step, data['primary_metric'])}, {verdict(step, 'better', 'worse')}"


def lines(data: dict[str, Any]) -> list[str]:
    """The paper's steps; the kinds of features; the encodings."""
    kinds = ("vertices", "edges", "angles", "vertices + edges")
    intra, edge = "SG + TG", "SG + TG + ST"
    values = ", ".join(_value(data, name) for name in ("kd", intra, edge, FULL))
    return [
        f"Test {data['primary_metric']}: {values}; SG + TG over kd {_step(data, intra, 'kd')}; adding ST "
        f"{_step(data, edge, intra)}; adding inter-sample {_step(data, FULL, edge)}.",
        "Kinds of features less the full set: "
        + "; ".join(f"{_value(data, name)}, {_step(data, name, FULL)}" for name in kinds)
        + ".",
        f"Encodings: {_value(data, 'vector encoding')} less the scalar one {_step(data, 'vector encoding', FULL)}; the full "
        f"scalar encoding over kd {_step(data, FULL, 'kd')}.",
    ]
