"""Tables of the final comparison, with paired 95 % t intervals over the seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from frozen_rows import ROWS, SETS
from scipy import stats

__all__ = ["difference", "summary", "tables"]


def difference(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float, float] | None:
    """Mean and 95 % interval of the paired differences over the seeds that both have; None for fewer than two."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    values = np.array([ours[s] - theirs[s] for s in seeds])
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


Rows = dict[str, dict[int, dict[str, Any]]]
HEADER = (
    "| set (seeds) | `tgeo` | over the best published row | over `posterior` | over the same, nothing learned | "
    "over the earlier default | share of what knowing the wrong labels gains | AUC: ratio / -log T_y / -log S_y |\n"
    "| --- | ---: | --- | --- | --- | --- | ---: | --- |"
)


def tables(records: Sequence[dict[str, Any]]) -> str:
    """One table per set: test metric in %, difference of ``tgeo`` to each row, and what the ratios are like."""
    return "\n\n".join(_table(name, rows) for name, rows in _by_set(records).items())


def summary(records: Sequence[dict[str, Any]]) -> str:
    """One table of all sets: ``tgeo`` beside the best published row (on all samples, not searched) and the own rows."""
    return "\n".join([HEADER, *(_summary_of(name, rows) for name, rows in _by_set(records).items())])


def _by_set(records: Sequence[dict[str, Any]]) -> dict[str, Rows]:
    by_set: dict[str, Rows] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        by_set[record["set"]][record["row"]][record["seed"]] = record
    return {name: by_set[name] for name in SETS if "tgeo" in by_set.get(name, {})}


def _scores(name: str, rows: Rows, row: str) -> dict[int, float]:
    return {seed: 100 * record["metrics"][SETS[name].metric] for seed, record in rows.get(row, {}).items()}


def _summary_of(name: str, rows: Rows) -> str:
    ours = _scores(name, rows, "tgeo")
    published = [
        r for r in rows if ROWS[r].kind == "published" and ROWS[r].train_on == "train+val" and not ROWS[r].search
    ]

    def common(row: str) -> float:
        values = [score for seed, score in _scores(name, rows, row).items() if seed in ours]
        return float(np.mean(values)) if values else -np.inf

    best = max(published, key=common, default="")
    theirs, known = _scores(name, rows, best), _scores(name, rows, "known wrong")
    seeds = sorted(ours.keys() & theirs.keys() & known.keys())
    share = ""
    if seeds:
        won, bound = (np.mean([a[s] - theirs[s] for s in seeds]) for a in (ours, known))
        share = f"{100 * won / bound:.0f} %" if bound > 0.05 else "it gains nothing"
    aucs = [_mean(rows["tgeo"].values(), key, ".3f") for key in ("auc", "auc_teacher", "auc_student")]
    cells = [
        f"{name} ({len(ours)})",
        f"{np.mean(list(ours.values())):.2f}",
        f"{_interval(difference(ours, theirs))} over `{best}`" if best else "",
        *(
            _interval(difference(ours, _scores(name, rows, row)))
            for row in ("posterior", "tgeo, nothing learned", "tgeo before")
        ),
        share,
        " / ".join(aucs) if aucs[0] else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _interval(gap: tuple[float, float, float] | None) -> str:
    return "" if gap is None else f"{gap[0]:+.2f} ({gap[1]:.2f} to {gap[2]:.2f})"


def _table(name: str, rows: Rows) -> str:
    metric = SETS[name].metric

    def scores(row: str) -> dict[int, float]:
        return _scores(name, rows, row)

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
            _interval(gap),
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
