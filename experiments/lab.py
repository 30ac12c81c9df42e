"""Variants of the method on the tasks that choices are made on, judged on data that neither training nor test ever sees."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAB = Path("/tmp/lab")
DATA = "/work/shared/data"

TASKS: dict[str, dict[str, Any]] = {
    "digits30": {"task": "digits", "data": {"noise": 0.3, "train": 500, "held_out": 300}, "dev": 150},
    "digits0": {"task": "digits", "data": {"noise": 0.0, "train": 500, "held_out": 300}, "dev": 150},
    "cifar0": {"task": "cifar100", "data": {"noise": "none", "held_out": 6000, "checksum": "any"}, "dev": 5000},
    "cifar40": {"task": "cifar100", "data": {"noise": "symmetric", "noise_rate": 0.4, "held_out": 6000, "checksum": "any"}, "dev": 5000},
    "adult0": {"task": "adult", "data": {"noise": 0.0}, "dev": 0.5},
    "adult20": {"task": "adult", "data": {"noise": 0.2}, "dev": 0.5},
}


@lru_cache(maxsize=2)
def dev_data(name: str, seed: int):
    from tgeokd.experiments.build import load_data
    from tgeokd.experiments.config import preset
    from tgeokd.loaders import subset

    spec = TASKS[name]
    config = preset(spec["task"])
    config = dataclasses.replace(config, data={**config.data, **spec["data"]}, data_dir=DATA, seed=seed)
    if spec["task"] == "cifar100":
        config = dataclasses.replace(config, data={**config.data, "test": 100})
    data = load_data(config)
    n = len(data.held_out)
    dev = spec["dev"] if isinstance(spec["dev"], int) else int(n * spec["dev"])
    target = torch.cat([b[1] for b in data.ordered_loader(data.held_out)]).numpy()
    from sklearn.model_selection import train_test_split

    held, judged = train_test_split(np.arange(n), test_size=dev, stratify=target, random_state=seed)
    held_out, judged = subset(data.held_out, np.sort(held).tolist()), subset(data.held_out, np.sort(judged).tolist())
    return config, dataclasses.replace(data, held_out=held_out, test=judged, test_groups={})


def teacher_for(name: str, seed: int):
    from tgeokd.experiments.teacher import make_teacher
    from tgeokd.teachers import TeacherCacheOptions

    config, data = dev_data(name, seed)
    torch.set_num_threads(1)
    folder = LAB / "teachers" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed}.safetensors"
    if not path.exists():
        metrics = make_teacher(config, data, path)
        (folder / f"{seed}.json").write_text(json.dumps(metrics))
    if config.task == "cifar100":
        from tgeokd.experiments.teacher import store_answers

        config = dataclasses.replace(config, teacher_cache=TeacherCacheOptions())
        if not (folder / f"{seed}.cache").exists():
            store_answers(config, data, path, folder / f"{seed}.cache")
        config = dataclasses.replace(config, teacher_cache=TeacherCacheOptions(folder=str(folder / f"{seed}.cache")))
    return config, data, path


def one(name: str, seed: int, label: str, method: str, options: dict[str, Any], train_on: str = "train") -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent))
    import variant as V

    from tgeokd.experiments.build import build_distiller, build_student, fit
    from tgeokd.experiments.teacher import load_teacher
    from tgeokd.methods import build_method

    out = LAB / "runs" / name / f"{label}-{seed}.json"
    if out.exists():
        return json.loads(out.read_text())
    torch.set_num_threads(1)
    config, data, path = teacher_for(name, seed)
    options = dict(options)
    recipe = config.student
    if "temperature" in options:
        config = dataclasses.replace(config, temperature=options.pop("temperature"))
    cls = {"variant": V.Variant, "oracle": V.Oracle, "rule": V.Rule}.get(method)
    m = cls(**options) if cls else build_method(method, **options)
    if cls and data.corrupted is not None:
        ids = torch.cat([b[2] for b in data.ordered_loader(data.train)])
        m.wrong = V.Wrong(ids, data.corrupted)
    teacher = load_teacher(config, data, path)
    student = build_student(config, data)
    d = build_distiller(student, teacher, m, config, recipe, data, progress=False)
    start = time.perf_counter()
    fit(d, recipe, data, seed=seed, with_held_out=train_on == "train+val")
    seconds = time.perf_counter() - start
    metrics = d.evaluate(data.ordered_loader(data.test))
    result = {"task": name, "seed": seed, "label": label, "seconds": round(seconds, 2), **{k: float(v) for k, v in metrics.items()}}
    result |= m.found() if cls else {"alpha": d.history["alpha_mean"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result))
    return result


def run_all(rows: dict[str, tuple], tasks: dict[str, list[int]], jobs: int = 2) -> None:
    todo = [(t, s, label, *row) for t, seeds in tasks.items() for s in seeds for label, row in rows.items()]
    pending = [j for j in todo if not (LAB / "runs" / j[0] / f"{j[2]}-{j[1]}.json").exists()]
    groups: dict[tuple, list] = {}
    for j in pending:
        groups.setdefault(j[:2], []).append(j)
    with ProcessPoolExecutor(jobs) as pool:
        for done in pool.map(_group, groups.values()):
            pass


def _group(jobs: list[tuple]) -> None:
    for j in jobs:
        try:
            one(*j)
        except Exception as error:
            print("FAILED", j, repr(error), flush=True)


def table(rows: list[str], tasks: dict[str, list[int]], against: str, metric: dict[str, str] | None = None) -> None:
    for t, seeds in tasks.items():
        key = "auc" if t.startswith("adult") else "accuracy"
        scale = 100
        got = {}
        for label in rows:
            found = {}
            for s in seeds:
                p = LAB / "runs" / t / f"{label}-{s}.json"
                if p.exists():
                    found[s] = json.loads(p.read_text())
            got[label] = found
        print(f"== {t}")
        for label, found in got.items():
            if not found:
                continue
            v = np.array([found[s][key] for s in found]) * scale
            common = [s for s in found if s in got.get(against, {})]
            d = np.array([found[s][key] - got[against][s][key] for s in common]) * scale if common else np.array([np.nan])
            se = d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else float("nan")
            extra = ""
            any_ = [f for f in found.values()]
            for k in ("alpha_right", "alpha_wrong", "auc_wrong", "spread"):
                if k in any_[0]:
                    extra += f" {k}={np.mean([f[k] for f in any_]):.2f}"
            last = [f["alpha"][-1] for f in any_ if f.get("alpha") and f["alpha"][-1] is not None]
            if last:
                extra += f" alpha_end={np.mean(last):.2f}"
            sec = np.mean([f["seconds"] for f in any_])
            print(f"{label:28s} n={len(v):2d} {v.mean():6.2f} ± {v.std(ddof=1) if len(v) > 1 else 0:4.2f}  diff {d.mean():+5.2f} ± {se:4.2f} {extra} {sec:.1f}s")
