"""What the runs of a comparison come to, and what they were made with."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from tgeokd.runs.config import RunConfig, preset, presets
from tgeokd.runs.executors import cores
from tgeokd.runs.plan import Entry
from tgeokd.runs.published import claimed
from tgeokd.runs.statistics import relative_improvement

__all__ = ["claims", "machine", "summarise"]


def summarise(runs: Iterable[dict[str, Any]], tuning: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of each metric by setting and row, in the order of the runs.

    ``seconds_vs_kd`` and ``memory_vs_kd`` are ratios of means to the first ``kd`` row of the setting, None without one;
    ``relative_improvement`` is that of the mean AUC over the first ``ce`` row's, for tasks that have an AUC;
    ``tuning_runs`` and ``tuning_seconds`` is what choosing the hyper-parameters cost.
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in runs:
        grouped.setdefault((record["setting"], record["method"]), []).append(record)
    tried = {(row["setting"], row["method"]): row["trials"] for row in tuning}

    def mean(key: tuple[str, str], name: str) -> float:
        return float(statistics.mean(record[name] for record in grouped[key]))

    summary = []
    for key, records in grouped.items():
        row: dict[str, Any] = {"setting": key[0], "method": key[1], "runs": len(records)}
        for metric in dict.fromkeys(name for record in records for name in record["metrics"]):
            # the recall of a class that a seed's split lacks does not exist there
            values = [record["metrics"][metric] for record in records if metric in record["metrics"]]
            row[f"{metric}_mean"] = statistics.mean(values)
            row[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
        row["trains_on_held_out"] = records[0]["trains_on_held_out"]
        row["best_epoch_mean"] = mean(key, "best_epoch")
        kd = _first(grouped, key[0], "kd")
        for name, short in (("seconds", "seconds"), ("peak_memory_mb", "memory")):
            row[f"{name}_mean"] = mean(key, name)
            row[f"{short}_vs_kd"] = mean(key, name) / mean(kd, name) if kd is not None else None
        ce = _first(grouped, key[0], "ce")
        if "auc_mean" in row and ce is not None:
            base = statistics.mean(record["metrics"]["auc"] for record in grouped[ce])
            row["relative_improvement"] = relative_improvement(row["auc_mean"], base)
        row["tuning_runs"] = len(tried.get(key, ()))
        row["tuning_seconds"] = sum(each["seconds"] for each in tried.get(key, ()))
        summary.append(row)
    return summary


def _first(grouped: Iterable[tuple[str, str]], setting: str, method: str) -> tuple[str, str] | None:
    """The first row of a method in a setting."""
    return next((key for key in grouped if key[0] == setting and key[1].split(" ")[0] == method), None)


def claims(config: RunConfig, entries: Iterable[Entry], metric: str) -> dict[str, dict[str, Any]]:
    """What is published for each row, where the data are a full recipe's (a ``paper`` preset's) without a change."""
    full = (preset(config.task, name).data for name in presets(config.task) if name.startswith("paper"))
    if config.data not in full:
        return {}
    models = config.teacher.model, config.student.model
    found = {e.label: claimed(config.task, *models, e.method, e.options, metric=metric) for e in entries}
    return {label: dataclasses.asdict(entry) for label, entry in found.items() if entry is not None}


def machine() -> dict[str, Any]:
    """What the numbers were made with."""
    packages = ("tgeokd", "torch", "numpy", "scikit-learn", "torchvision", "transformers", "polars", "lightgbm")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": cores(), "processor": platform.machine(), "gpu": gpu, "versions": versions}
