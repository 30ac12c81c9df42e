"""The whole story on real handwritten digits: every method, two settings, five seeds."""

from __future__ import annotations

from tgeokd.runs.plan import Entry, Setting, parse_entry

__all__ = ["DEMO_ROWS", "DEMO_SETTINGS"]

DEMO_ROWS: list[Entry] = [
    parse_entry(text)
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
        # Controls: what the held-out samples are worth as plain training samples.
        "ce@train+val",
        "kd:alpha=0.5@train+val",
    )
]

DEMO_SETTINGS: list[Setting] = [Setting("clean", {"noise": 0.0}), Setting("noise 30 %", {"noise": 0.3})]
