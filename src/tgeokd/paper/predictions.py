"""Training and predictions inside an analysis."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tgeokd.data import TaskData
from tgeokd.data.datasets import subset
from tgeokd.methods import build_method
from tgeokd.runs.build import build_distiller, build_student, fit, method_of
from tgeokd.runs.config import RunConfig
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import Distiller


def new_teacher(config: RunConfig, data: TaskData) -> Any:
    """The run's teacher, trained or loaded, without writing it to the run's folder."""
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
    # The evaluation loop of a student is used, with the teacher as the model.
    distiller = build_distiller(teacher, None, build_method("ce"), config, config.teacher, data, progress=False)
    return probs(distiller, batches)


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of two predictions, the length of the edge S-T: shape (N,), in [0, sqrt(2)]."""
    distance: Tensor = (student - teacher).norm(dim=-1)
    return distance


def sample(data: TaskData, dataset: Dataset[Any], most: int, seed: int) -> tuple[list[int], list[Any]]:
    """At most ``most`` random rows of a data set, ascending, and their batches.

    The batches are fetched once: where the data set augments at random, every pass over them sees the same inputs.
    """
    size: int = len(dataset)  # type: ignore[arg-type]
    rows = list(range(size))
    if size > most:
        rows = np.sort(np.random.default_rng(seed).choice(size, most, replace=False)).tolist()
    return rows, list(data.ordered_loader(subset(dataset, rows)))
