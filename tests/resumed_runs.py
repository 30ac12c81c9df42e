"""Training runs that are interrupted and resumed, and how their end is compared with that of an uninterrupted run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import data, without_seconds
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller
from tgeokd.training.callbacks import Callback

EPOCHS = 5
STEPS = 3  # of an epoch: 20 samples in batches of 8


def train_loader(generator_seed: int | None = None, **options: Any) -> DataLoader[Any]:
    generator = None if generator_seed is None else torch.Generator().manual_seed(generator_seed)
    return DataLoader(TensorDataset(*data(20)), 8, **{"shuffle": True, "generator": generator, **options})


def validation_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(12, 7)), 6)


class CutOff(Exception):
    """Stands for a crash."""


class At(Callback):
    """Does something after a step, counted over the whole run, given by its index from 1."""

    def __init__(self, step: int | None = None, act: Callable[[Distiller], None] | None = None) -> None:
        self.step, self.act = step, act

    def on_step_end(self, distiller: Distiller) -> None:
        if self.act is not None and distiller.step == self.step:
            self.act(distiller)


def crash(_: Distiller) -> None:
    raise CutOff


def save_and_crash(distiller: Distiller) -> None:
    distiller.save_checkpoint()
    raise CutOff


def distiller_of(
    method: Any = "kd",
    callback: Callback | None = None,
    *,
    scheduler: Any = None,
    optimizer: str = "sgd",
    lr: float = 0.1,
    teacher: Any = None,
    **options: Any,
) -> Distiller:
    """Student with batch norm and dropout, so that buffers and random states matter."""
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    teacher = nn.Linear(4, 3) if teacher is None else teacher
    parameters = student.parameters()
    made = SGD(parameters, lr, momentum=0.9) if optimizer == "sgd" else AdamW(parameters, 0.01)
    settings = {"accelerator": "cpu", "progress": False, "callbacks": [] if callback is None else [callback], **options}
    if scheduler is not None:
        settings["scheduler"] = scheduler(made)
    return Distiller(student, teacher, method, made, **settings)


def fit(distiller: Distiller, **options: Any) -> None:
    distiller.fit(train_loader(), validation_loader(), **{"epochs": EPOCHS, **options})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return without_seconds([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a nested state, by path."""
    if isinstance(state, dict):
        pairs: Any = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return {prefix: state}
    leaves: dict[str, Any] = {}
    for key, value in pairs:
        leaves |= flat(value, f"{prefix}/{key}")
    return leaves


def assert_same_end(resumed: Distiller, whole: Distiller) -> None:
    """Student, optimizer, scheduler, method (omega among it) and history are equal bit for bit."""
    for part in ("student", "optimizer", "scheduler", "method"):
        states = [getattr(d, part).state_dict() if getattr(d, part) is not None else {} for d in (resumed, whole)]
        ours, theirs = map(flat, states)
        assert ours.keys() == theirs.keys()
        for path, value in ours.items():
            same = torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path]
            assert same, f"{part}{path}"
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert resumed.step == whole.step


def cut_off_and_resumed(
    tmp_path: Path,
    make: Callable[[Callback | None], Distiller],
    step: int,
    fit: Callable[..., None] = fit,
    act: Callable[[Distiller], None] = crash,
) -> tuple[Distiller, Distiller]:
    """A resumed run and one in one piece; ``make(callback)`` and ``fit(distiller, **options)`` are called for each.

    Both end equal, and so do their files with the metrics.
    """
    with pytest.raises(CutOff):
        fit(make(At(step, act)), out=tmp_path / "cut")
    torch.rand(17)  # another process has other random states
    random.random()
    np.random.rand()
    return resumed_and_whole(tmp_path, lambda: make(None), fit)


def resumed_and_whole(
    tmp_path: Path, make: Callable[[], Distiller], fit: Callable[..., None]
) -> tuple[Distiller, Distiller]:
    """The interrupted run in ``tmp_path / "cut"``, resumed, and one in one piece; they and their metrics end equal."""
    resumed, whole = make(), make()
    fit(resumed, out=tmp_path / "cut", resume=True)
    fit(whole, out=tmp_path / "whole")
    assert_same_end(resumed, whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    return resumed, whole
