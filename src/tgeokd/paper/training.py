"""Teacher, student and what both predict, for the analyses that look inside a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tgeokd.data import TaskData
from tgeokd.data.loaders import subset
from tgeokd.methods import build_method
from tgeokd.runs.build import build_distiller, build_student, fit, method_of
from tgeokd.runs.config import RunConfig
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import CLASSIFIERS, StoredPredictions
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import Distiller
from tgeokd.utils.errors import InputError

__all__ = [
    "check_teacher_sees",
    "discrepancy",
    "drawn",
    "new_teacher",
    "probs",
    "some_batches",
    "teacher_probs",
    "trained",
]


def new_teacher(config: RunConfig, data: TaskData) -> Any:
    """The run's teacher, made here and not kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        build_teacher(config, data, path)
        return load_teacher(config, data, path)


def trained(config: RunConfig, data: TaskData, teacher: Any, callbacks: Sequence[Callback] = ()) -> Distiller:
    """The Distiller after the run's training."""
    method, student = method_of(config), build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    distiller.callbacks.extend(callbacks)
    fit(distiller, config.student, data, seed=config.seed, with_held_out=config.train_on == "train+val")
    return distiller


def probs(distiller: Distiller, batches: Iterable[Any]) -> Tensor:
    """The student's probabilities, shape (N, C), float64, on the CPU."""
    return distiller.predict(batches)[0].double().softmax(dim=-1)


def teacher_probs(config: RunConfig, data: TaskData, teacher: Any, batches: Iterable[Any]) -> Tensor:
    """The teacher's probabilities, shape (N, C), float64, on the CPU."""
    if isinstance(teacher, StoredPredictions):
        logits = torch.cat([teacher.lookup(batch[2]) for batch in batches])
        return logits.cpu().double().softmax(dim=-1)
    # the same loop evaluates a teacher as the student of nobody
    distiller = build_distiller(teacher, None, build_method("ce"), config, config.teacher, data, progress=False)
    return probs(distiller, batches)


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of the two predictions, the length of the edge S-T: shape (N,), in [0, sqrt(2)]."""
    distance: Tensor = (student - teacher).norm(dim=-1)
    return distance


def drawn(size: int, most: int, seed: int) -> list[int]:
    """All rows of a data set, or as many as ``most`` drawn at random, in ascending order."""
    if size <= most:
        return list(range(size))
    rows = np.random.default_rng(seed).choice(size, most, replace=False)
    return sorted(rows.tolist())


def some_batches(data: TaskData, dataset: Dataset[Any], rows: list[int]) -> list[Any]:
    """The batches of some rows, fetched once: where the data set augments at random, the same for every pass."""
    return list(data.ordered_loader(subset(dataset, rows)))


def check_teacher_sees(config: RunConfig, what: str) -> None:
    """Refuse a teacher that is a list of predictions: it cannot say anything of inputs that are changed."""
    if config.teacher.predictions is not None or config.teacher.model.get("name") in CLASSIFIERS:
        raise InputError(
            f"{what} shows the teacher changed inputs and needs a network, not predictions or a classifier"
        )
