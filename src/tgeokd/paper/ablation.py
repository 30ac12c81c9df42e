"""`ablation`: the contribution of each part of the geometry."""

from typing import Any, ClassVar

from tgeokd.core.metrics import formatted
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import KD, RATIO_ALONE, Differences
from tgeokd.paper.comparison import ComparisonAnalysis, gain, gain_text
from tgeokd.paper.formatting import mean
from tgeokd.runs.results import MethodSpec

__all__ = ["FULL", "KINDS", "STEPS", "VECTOR", "Ablation"]


def _scalar(**options: Any) -> MethodSpec:
    return MethodSpec("tgeo", RATIO_ALONE | options)


FULL, VECTOR = "SG + TG + ST + inter-sample", "vector encoding"
KINDS = {
    "vertices": _scalar(edges=False, angles=False),
    "edges": _scalar(vertices=False, angles=False),
    "angles": _scalar(vertices=False, edges=False, angles=True),
    "vertices + edges": _scalar(angles=False),
}
STEPS = {
    "SG + TG": _scalar(student_teacher_edge=False, inter_sample=False),
    "SG + TG + ST": _scalar(inter_sample=False),
    FULL: _scalar(),
}


@ANALYSES.register("ablation")
class Ablation(ComparisonAnalysis):
    """Test results by the features that the ratio network receives, with ``kd`` as the baseline.

    The paper's steps (the edges SG and TG; the edge ST with its angles; the inter-sample triangle, which makes all features),
    kinds of features in all triangles, and the vector encoding of 9C numbers.
    """

    rows: ClassVar = {"kd": KD, **STEPS, **KINDS, VECTOR: _scalar(encoding="vector")}

    def differences(self, data: dict[str, Any]) -> Differences:
        """Each step over the one before; each kind of features and the vector encoding over the full set; that over kd."""
        order = ["kd", *STEPS]
        pairs = [*zip(STEPS, order, strict=False), *((name, FULL) for name in (*KINDS, VECTOR)), (FULL, "kd")]
        return {f"{name} over {over}": gain(data, name, over) for name, over in pairs}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """The paper's steps; the kinds of features; the encodings."""
        metric = data["primary_metric"]
        values = {name: f"{name} {formatted(metric, mean(of))}" for name, of in data["values"].items()}
        texts = {name: gain_text(d, metric) for name, d in differences.items()}
        first, second, third = STEPS
        return [
            f"Test {metric}: {', '.join(values[name] for name in ('kd', *STEPS))}. SG + TG over kd: "
            f"{texts[f'{first} over kd']}; adding ST: {texts[f'{second} over {first}']}; adding inter-sample: "
            f"{texts[f'{third} over {second}']}.",
            "Kinds of features, compared with the full set: "
            + "; ".join(f"{values[name]}, {texts[f'{name} over {FULL}']}" for name in KINDS)
            + ".",
            f"Encodings: {values[VECTOR]}, compared with the scalar one: {texts[f'{VECTOR} over {FULL}']}; "
            f"full scalar encoding over kd: {texts[f'{FULL} over kd']}.",
        ]
