"""Summaries of the runs of a comparison, published values beside them, and the machine they were run on."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import torch

from tgeokd.runs.config import RunConfig, preset, presets
from tgeokd.runs.executors import cores
from tgeokd.runs.published import claimed
from tgeokd.runs.results import Claim, MethodSpec, RowSummary, RunRecord, Spread, TuningRecord
from tgeokd.runs.statistics import relative_improvement

__all__ = ["claims", "machine", "summarise"]


def summarise(runs: Sequence[RunRecord], tuning: Iterable[TuningRecord] = ()) -> list[RowSummary]:
    """Each row over its seeds, by data variant and row, in the order of the runs.

    Ratios are to the first ``kd`` row of the variant, the relative improvement is over its first ``ce`` row.
    """
    grouped: dict[tuple[str, MethodSpec], list[RunRecord]] = {}
    for run in runs:
        grouped.setdefault((run.variant, run.spec), []).append(run)
    trials = {(record.variant, record.spec): record.trials for record in tuning}
    summary = []
    for (variant, row), own in grouped.items():
        kd, ce = (_first(grouped, variant, method) for method in ("kd", "ce"))
        seconds = _spread([run.seconds for run in own])
        memory = _spread([run.peak_memory_mb for run in own])
        tried = trials.get((variant, row), [])
        # the recall of a class is missing where the split of a seed lacks the class
        names = dict.fromkeys(name for run in own for name in run.metrics)
        summary.append(
            RowSummary(
                variant=variant,
                method=row.method,
                options=row.options,
                train_on=row.train_on,
                runs=len(own),
                metrics={name: _spread([run.metrics[name] for run in own if name in run.metrics]) for name in names},
                seconds=seconds,
                peak_memory_mb=memory,
                best_epoch=statistics.fmean(run.best_epoch for run in own),
                trains_on_validation=own[0].trains_on_validation,
                seconds_vs_kd=seconds.mean / statistics.mean(run.seconds for run in kd) if kd else None,
                memory_vs_kd=memory.mean / statistics.mean(run.peak_memory_mb for run in kd) if kd else None,
                relative_improvement=relative_improvement(_auc(own), _auc(ce)) if "auc" in names and ce else None,
                tuning_runs=len(tried),
                tuning_seconds=float(sum(trial["seconds"] for trial in tried)),
            )
        )
    return summary


def _spread(values: list[float]) -> Spread:
    has_sd = len(values) > 1 and all(map(math.isfinite, values))
    return Spread(statistics.mean(values), statistics.stdev(values) if has_sd else None)


def _auc(runs: Iterable[RunRecord]) -> float:
    return statistics.mean(run.metrics["auc"] for run in runs)


def _first(grouped: dict[tuple[str, MethodSpec], list[RunRecord]], variant: str, method: str) -> list[RunRecord]:
    """The runs of the first row of a method in a variant."""
    return next((runs for (name, row), runs in grouped.items() if (name, row.method) == (variant, method)), [])


def claims(config: RunConfig, rows: Iterable[MethodSpec], metric: str) -> list[Claim]:
    """The published value of each row, where the data are those of a full recipe (a ``paper`` preset) without a change."""
    full = (preset(config.task, name).data for name in presets(config.task) if name.startswith("paper"))
    if config.data not in full:
        return []
    models = config.teacher.model, config.student.model
    found = [(row, claimed(config.task, *models, row.method, row.options, metric=metric)) for row in rows]
    return [Claim(row=row, value=p.value, source=p.source, protocol=p.protocol) for row, p in found if p is not None]


def machine() -> dict[str, Any]:
    """Hardware and versions that the numbers were made with."""
    packages = ("tgeokd", "torch", "numpy", "scikit-learn", "torchvision", "transformers", "polars", "lightgbm")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": cores(), "processor": platform.machine(), "gpu": gpu, "versions": versions}
