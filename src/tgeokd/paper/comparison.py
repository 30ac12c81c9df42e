"""Analyses that are comparisons of rows over seeds, and alpha by group from the records of their runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgeokd.paper.base import Analysis
from tgeokd.paper.formatting import improvement, interval, subtract, verdict
from tgeokd.runs.compare import compare
from tgeokd.runs.config import RunConfig
from tgeokd.runs.results import DataVariant, MethodSpec, RunRecord
from tgeokd.runs.statistics import PairedTest

VARIANT = "as-configured"


class ComparisonAnalysis(Analysis):
    """An analysis whose rows are compared in ``out/runs``; the comparison is continued where it was interrupted."""

    def measure(self, config: RunConfig, seeds: Sequence[int], out: Path, processes: int | None) -> dict[str, Any]:
        """The test value of the primary metric by row and seed, and what :meth:`collect` adds."""
        folder, rows = out / "runs", list(self.rows.values())
        begun = (folder / "comparison.yaml").exists()
        results = compare(config, rows, seeds, folder, variants=[DataVariant(VARIANT)], jobs=processes, resume=begun)
        found = {(run.spec, run.seed): run for run in results.runs}
        runs = {name: [found[row, seed] for seed in seeds] for name, row in self.rows.items()}
        metric = results.primary_metric
        values = {name: [run.metrics[metric] for run in own] for name, own in runs.items()}
        return {"primary_metric": metric, "values": values, **self.collect(runs, folder, seeds)}

    def collect(self, runs: Mapping[str, Sequence[RunRecord]], folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """Further data, from the records of each row's runs, in the order of the seeds, and the comparison's folder."""
        return {}


def histories(folder: Path, row: MethodSpec, seeds: Iterable[int]) -> list[list[dict[str, Any]]]:
    """The records of a row's epochs, one list per seed."""
    folders = (row.folder(folder, VARIANT) / f"seed-{seed}" for seed in seeds)
    return [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]


def gain(data: Mapping[str, Any], name: str, over: str) -> PairedTest | None:
    """By how much a row is better than another in the primary metric, paired by seed."""
    return improvement(data["primary_metric"], data["values"][name], data["values"][over])


def gain_text(d: PairedTest | None, metric: str) -> str:
    """A gain with its interval and conclusion."""
    return f"{interval(d, metric)}, {verdict(d, 'better', 'worse')}"


def group_mean(groups: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> float | None:
    """Mean alpha over the samples of several groups, from each group's mean and count; None without samples."""
    chosen = [groups[name] for name in names if groups[name]["count"]]
    count = sum(group["count"] for group in chosen)
    return sum(group["mean"] * group["count"] for group in chosen) / count if count else None


def group_gap(
    seeds: Iterable[Mapping[str, Mapping[str, Any]]], names: Sequence[str], less: Sequence[str]
) -> list[float | None]:
    """Mean alpha of some groups less that of others, by seed; None where either has no samples."""
    pairs = [(group_mean(groups, names), group_mean(groups, less)) for groups in seeds]
    return subtract(*zip(*pairs, strict=True))
