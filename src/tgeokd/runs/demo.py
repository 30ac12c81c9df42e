"""The demo on real handwritten digits: every method, clean and noisy labels, five seeds."""

from __future__ import annotations

from tgeokd.runs.plan import DataVariant, MethodSpec, parse_method

__all__ = ["DEMO_ROWS", "DEMO_VARIANTS"]

DEMO_ROWS: list[MethodSpec] = [
    parse_method(text)
    for text in (
        "ce",
        "kd:alpha=0.1",
        "kd:alpha=0.3",
        "kd:alpha=0.5",
        "kd:alpha=0.7",
        "kd:alpha=0.9",
        "anl",
        "ada",
        "wls",
        "rw",
        "tgeo",
        "tgeo:outer=holdout",
        "tgeo:paper=true",
        # Controls: the value of the validation samples as plain training samples.
        "ce@train+val",
        "kd:alpha=0.5@train+val",
    )
]

DEMO_VARIANTS = [DataVariant("clean", {"noise": 0.0}), DataVariant("noise 30 %", {"noise": 0.3})]
