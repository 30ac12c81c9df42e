"""The tasks that choices are made on, and the samples that are judged there.

Test data are not used. A stratified part of the validation set replaces the test set: neither teacher nor student nor omega
uses it. CIFAR-100's validation set is enlarged for that by training images that the preset leaves unused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from tgeokd.data import TaskData
from tgeokd.data.datasets import subset
from tgeokd.runs.build import load_data, use_threads
from tgeokd.runs.config import RunConfig, preset, replace
from tgeokd.runs.teacher import build_teacher, cache_teacher_logits
from tgeokd.teachers import TeacherCacheOptions

__all__ = ["TASKS", "Prepared", "Task", "prepare"]


@dataclass(frozen=True)
class Task:
    """A development task: a ``lite`` preset with other data options.

    Attributes:
        name: of the package's task.
        data: options of its data that differ from the preset's.
        judged: validation samples to judge on, as a number or a share; the others are the validation set of the study.
        metric: of the judgement.
        cached: whether the teacher is slow enough to store its logits, see :class:`TeacherCacheOptions`.
    """

    name: str
    data: dict[str, Any]
    judged: int | float
    metric: str = "accuracy"
    cached: bool = False


def _digits(noise: float) -> Task:
    return Task("digits", {"noise": noise, "train": 500, "held_out": 300}, judged=150)


def _adult(**data: Any) -> Task:
    return Task("adult", data, judged=0.5, metric="auc")


def _cifar(**data: Any) -> Task:
    # the test images are not used: as few as possible are read
    return Task("cifar100", {"held_out": 6000, "test": 100, "checksum": "any", **data}, judged=5000, cached=True)


TASKS: dict[str, Task] = {
    "digits30": _digits(0.3),
    "digits0": _digits(0.0),
    "adult5k": _adult(noise=0.2, train=5000),
    "adult20": _adult(noise=0.2),
    "adult0": _adult(noise=0.0),
    "cifar40": _cifar(noise="symmetric", noise_rate=0.4),
    "cifar0": _cifar(noise="none"),
}
"""By name. The number is the % of training labels replaced; ``adult5k``: 20 % of 5000. Validation labels stay correct."""


@lru_cache(maxsize=1)  # the runs of a seed, one after the other, share it
def _load(name: str, seed: int, data_dir: str | None) -> tuple[RunConfig, TaskData]:
    """The config of a task and seed, and its data, with the judged samples as ``test``."""
    task = TASKS[name]
    config = preset(task.name)
    config = replace(config, data={**config.data, **task.data}, data_dir=data_dir, seed=seed, accelerator="cpu")
    data = load_data(config)
    target = torch.cat([batch[1] for batch in data.ordered_loader(data.held_out)]).numpy()
    judged = task.judged if isinstance(task.judged, int) else int(task.judged * len(target))
    rows = train_test_split(np.arange(len(target)), test_size=judged, stratify=target, random_state=seed)
    held_out, test = (subset(data.held_out, np.sort(part).tolist()) for part in rows)
    return config, dataclasses.replace(data, held_out=held_out, test=test, test_groups={})


@dataclass(frozen=True)
class Prepared:
    """A task and seed with a trained teacher."""

    config: RunConfig
    data: TaskData
    teacher: Path


def prepare(name: str, seed: int, data_dir: str | None, folder: Path) -> Prepared:
    """Train the teacher of a task and seed in ``folder``, unless it is there."""
    config, data = _load(name, seed, data_dir)
    use_threads(config)
    path = folder / f"{seed}.safetensors"
    if not path.exists():
        build_teacher(config, data, path)
    if TASKS[name].cached:
        logits = path.with_suffix(".cache")
        config = replace(config, teacher_cache=TeacherCacheOptions(folder=str(logits)))
        if not logits.exists():
            cache_teacher_logits(config, data, path, logits)
    return Prepared(config, data, path)
