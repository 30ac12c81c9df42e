"""Analyses that are a comparison: rows by seeds, and what the runs left in their folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgeokd.core.metrics import higher_is_better
from tgeokd.paper.wording import difference
from tgeokd.runs.compare import compare
from tgeokd.runs.config import RunConfig
from tgeokd.runs.results import ComparisonResults, DataVariant, MethodSpec
from tgeokd.runs.statistics import PairedTest
from tgeokd.utils.files import slug

__all__ = ["compared", "gain", "group_gap", "group_mean", "histories", "primary_of", "shared_facts"]

SETTING = "as-configured"


def compared(
    config: RunConfig, entries: Sequence[MethodSpec], seeds: Sequence[int], out: Path, jobs: int | None
) -> ComparisonResults:
    """The comparison of some rows in ``out/runs``, begun or finished."""
    folder = out / "runs"
    begun = (folder / "comparison.yaml").exists()
    return compare(config, entries, seeds, folder, variants=[DataVariant(SETTING)], jobs=jobs, resume=begun)


def histories(out: Path, entry: MethodSpec, seeds: Iterable[int]) -> list[list[dict[str, Any]]]:
    """The records of a row's runs, epoch by epoch, one list a seed."""
    folders = (out / "runs" / slug(SETTING) / slug(entry.label) / f"seed-{seed}" for seed in seeds)
    return [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]


def shared_facts(results: ComparisonResults) -> dict[str, Any]:
    """What every comparison's analysis keeps of ``results.json``."""
    content = results.to_dict()
    for record, run in zip(content["runs"], results.runs, strict=True):
        record["row"] = run.label
    return {key: content[key] for key in ("primary_metric", "runs", "summary", "teachers", "machine")}


def primary_of(data: Mapping[str, Any], label: str) -> dict[int, float]:
    """A row's test value of the primary metric by seed."""
    return {r["seed"]: r["metrics"][data["primary_metric"]] for r in data["runs"] if r.get("row", r["method"]) == label}


def gain(data: Mapping[str, Any], label: str, over: str) -> PairedTest | None:
    """By how much a row is better than another in the primary metric, paired by seed; positive where it is."""
    sign = 1.0 if higher_is_better(data["primary_metric"]) else -1.0
    own, other = primary_of(data, label), primary_of(data, over)
    return difference([sign * (value - other[seed]) for seed, value in own.items() if seed in other])


def group_mean(groups: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> float | None:
    """Mean alpha of the samples of some groups together, from each group's mean and count; None where they are empty."""
    chosen = [groups[name] for name in names if groups[name]["count"]]
    count = sum(group["count"] for group in chosen)
    return sum(group["mean"] * group["count"] for group in chosen) / count if count else None


def group_gap(groups: Mapping[str, Mapping[str, Any]], names: Iterable[str], less: Iterable[str]) -> float | None:
    """Mean alpha of some groups less that of some others, None where either are empty."""
    own, other = group_mean(groups, names), group_mean(groups, less)
    return None if own is None or other is None else own - other
