"""Trainings that are resumed from every kind of checkpoint."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tgeokd import Distiller, TGeoKD
from tgeokd.training.callbacks import Callback
from tools.torture.children import run
from tools.torture.interruptions import Undisturbed, folder
from tools.torture.report import Row
from tools.torture.trainings import result

EPOCHS, BATCHES = 3, 7
KINDS = ("mid-epoch", "end of an epoch", "last step of an epoch", "after the last epoch", "best", "newest one damaged")


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws random numbers of Python, NumPy and torch for each sample."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(BATCHES * 8 - 4, 4, generator=generator)
        self.y = (self.x @ torch.randn(4, 3, generator=generator)).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        moved = self.x[index] * random.uniform(0.5, 1.5) + float(np.random.normal(0, 0.1)) + 0.1 * torch.randn(4)
        return moved, self.y[index]


class Die(Callback):
    """Ends the process at once, after a given step."""

    def __init__(self, step: int, *, save: bool) -> None:
        self.step, self.save = step, save

    def on_step_end(self, distiller: Distiller) -> None:
        """End it."""
        if distiller.step == self.step:
            if self.save:
                distiller.save_checkpoint()
            distiller._loop.saved.close()  # type: ignore[union-attr]  # what is being written is another torture
            os._exit(9)


def train(place: Path, workers: int, accumulate: int, callback: Callback | None, resume: bool | str) -> None:
    """A student with batch norm and dropout, a learned ratio, early stopping, and a learning-rate schedule."""
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = SGD(student.parameters(), 0.1, momentum=0.9)
    distiller = Distiller(
        *(student, nn.Sequential(nn.Linear(4, 3)), TGeoKD(update_interval=2, outer="holdout"), optimizer),
        scheduler=StepLR(optimizer, 1, 0.7),
        accumulate=accumulate,
        accelerator="cpu",
        progress=False,
        allow_bad_teacher=True,
        callbacks=[] if callback is None else [callback],
    )
    loader = DataLoader(Augmented(), 8, shuffle=True, num_workers=workers)
    held_out = Augmented()
    distiller.fit(
        *(loader, DataLoader(TensorDataset(held_out.x, held_out.y), 26)),
        epochs=EPOCHS,
        patience=10,
        out=place / "run",
        resume=resume,  # type: ignore[arg-type]
    )


def resumes(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """Every kind of checkpoint, with and without worker processes and accumulation; ``seconds`` are not needed."""
    counts = Counter[str]()
    for workers, accumulate in product((0, 2), (1, 3)):
        steps = -(-BATCHES // accumulate)
        with folder() as place:
            _child(place, partial(train, place, workers, accumulate, None, False), counts)
            whole = result(place)
        for kind in KINDS:
            name = f"{kind}, {workers} workers, accumulation {accumulate}"
            callback = {
                "mid-epoch": Die(steps + 2, save=True),
                "end of an epoch": Die(steps + 1, save=False),
                "last step of an epoch": Die(2 * steps, save=True),
                "newest one damaged": Die(2 * steps + 1, save=True),
            }.get(kind)
            with folder() as place:
                first = partial(train, place, workers, accumulate, callback, False)
                _child(place, first, counts, 0 if callback is None else 9)
                if kind == "newest one damaged":
                    newest = max((place / "run" / "checkpoints").glob("step-*.pt"))
                    content = bytearray(newest.read_bytes())
                    content[len(content) // 2] ^= 1
                    newest.write_bytes(content)
                how: bool | str = "best" if kind == "best" else True
                _child(place, partial(train, place, workers, accumulate, None, how), counts)
                counts["done"] += 1
                if result(place) != whole:
                    counts[name] += 1
    return Row("resumed from every kind of checkpoint, 0 / 2 workers, accumulation 1 / 3: bit-identical", counts)


def _child(place: Path, function: Callable[[], None], counts: Counter[str], code: int = 0) -> None:
    ended = run(function, place / "log.txt")
    if ended.code != code:
        counts[f"ended with {ended.code}: {ended.last_line}"] += 1
