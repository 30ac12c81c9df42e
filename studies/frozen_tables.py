"""Tables of the final comparison, with paired 95 % t intervals over the seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from frozen_rows import ROWS, SETS
from scipy import stats

__all__ = ["difference", "tables"]


def difference(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float, float] | None:
    """Mean and 95 % interval of the paired differences over the seeds that both have; None for fewer than two."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    values = np.array([ours[s] - theirs[s] for s in seeds])
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def tables(records: Sequence[dict[str, Any]]) -> str:
    """One table per set: test metric in %, difference of ``tgeo`` to each row, and what the ratios are like."""
    by_set: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        by_set[record["set"]][record["row"]][record["seed"]] = record
    return "\n\n".join(_table(name, by_set[name]) for name in SETS if name in by_set)


def _table(name: str, rows: dict[str, dict[int, dict[str, Any]]]) -> str:
    metric = SETS[name].metric

    def scores(row: str) -> dict[int, float]:
        return {seed: 100 * record["metrics"][metric] for seed, record in rows[row].items()}

    teacher = [100 * record["teacher"] for record in rows["tgeo"].values() if record["teacher"] is not None]
    lines = [
        f"### {name}",
        "",
        f"{metric} on test data, %, mean of {len(rows['tgeo'])} seeds; teacher {np.mean(teacher):.1f}.",
        "",
        "| row | " + metric + " | `tgeo` minus row | nll | seconds | alpha | AUC for wrong labels |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for label in ROWS:
        if label not in rows:
            continue
        found = rows[label].values()
        gap = None if label == "tgeo" else difference(scores("tgeo"), scores(label))
        cells = [
            label + (" (closed form)" if label == "posterior" else ""),
            f"{np.mean(list(scores(label).values())):.2f}",
            "" if gap is None else f"{gap[0]:+.2f} ({gap[1]:.2f} to {gap[2]:.2f})",
            f"{np.mean([record['metrics']['nll'] for record in found]):.3f}",
            f"{np.mean([record['seconds'] for record in found]):.1f}",
            _mean(found, "alpha", ".2f"),
            _mean(found, "auc", ".3f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    inputs = {key: _mean(rows["tgeo"].values(), key, ".3f") for key in ("auc_teacher", "auc_student")}
    if inputs["auc_teacher"]:
        lines += [
            "",
            f"AUC for wrong labels of -log T_y: {inputs['auc_teacher']}; of -log S_y at the end: {inputs['auc_student']}.",
        ]
    stuck = sum(bool(record.get("saturated")) for record in rows["tgeo"].values())
    lines += ["", f"Runs of `tgeo` with all ratios within 0.02 of 0 or 1: {stuck} of {len(rows['tgeo'])}."]
    return "\n".join(lines)


def _mean(records: Any, key: str, form: str) -> str:
    values = [record[key] for record in records if record.get(key) is not None]
    return format(np.mean(values), form) if values else ""
