"""Two processes in one folder, and trainings of many steps."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller
from tgeokd.methods import METHODS
from tgeokd.training.callbacks import Callback
from tgeokd.utils.run_folder import RunFolder
from tools.torture.children import run
from tools.torture.interruptions import Undisturbed, folder
from tools.torture.report import Row

TIMES = 50
WARM_UP = 500  # steps
ALLOWED = 1.01  # of the memory after the warm-up


def locks(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """A second process takes the folder of a running one: refused, and told who holds it."""
    counts = Counter[str]()
    for _ in range(TIMES):
        with folder() as place, RunFolder(place / "run"):
            ended = run(partial(RunFolder, place / "run"), place / "log.txt")
            counts["done"] += 1
            if str(os.getpid()) not in ended.err or "InputError" not in ended.err:
                counts[f"ended with {ended.code}: {ended.last_line}"] += 1
    return Row("two processes on one folder: the second one refused, with the holder's process number", counts)


class Watch(Callback):
    """Notes memory and open files every thousand steps after the warm-up."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, int]] = []

    def on_step_end(self, distiller: Distiller) -> None:
        """Note them."""
        if distiller.step == WARM_UP or (distiller.step > WARM_UP and distiller.step % 1000 == 0):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.noted.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))))


def endurance(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """Many steps of each method in a child of its own: memory and file handles stay what they are after the warm-up.

    Where the time is short, as many steps of each method as it allows.
    """
    counts = Counter[str]()
    each = seconds / len(METHODS)
    steps_done = []
    for name in METHODS:
        with folder() as place:
            ended = run(partial(_many, name, each, place), place / "log.txt")
            counts["done"] += 1
            if ended.code != 0:
                counts[f"{name}: {ended.last_line}"] += 1
            else:
                steps_done.append(int((place / "steps").read_text()))
    least = min(steps_done, default=0)
    return Row(
        f"steps of each method (at least {least:,}): memory within 1 % and file handles flat after {WARM_UP}", counts
    )


def _many(method: str, seconds: float, place: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(800, 8)
    y = (x @ torch.randn(8, 4)).argmax(dim=1)
    student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    watch, until = Watch(), time.monotonic() + seconds

    class Enough(Callback):
        def on_epoch_end(self, distiller: Distiller, record: dict[str, object]) -> None:
            distiller.should_stop = distiller.step >= 20_000 or time.monotonic() > until

    distiller = Distiller(
        *(student, nn.Sequential(nn.Linear(8, 4)), method, SGD(student.parameters(), 0.01)),
        accelerator="cpu",
        progress=False,
        allow_bad_teacher=True,
        callbacks=[watch, Enough()],
    )
    loaders = (
        DataLoader(TensorDataset(x[:700], y[:700]), 8, shuffle=True),
        DataLoader(TensorDataset(x[700:], y[700:]), 50),
    )
    distiller.fit(*loaders, epochs=400, out=place / "run", checkpoint_every=10)
    (place / "steps").write_text(str(distiller.step))
    (memory, files), *later = watch.noted
    for now, handles in later:
        if now > ALLOWED * memory + 1 or handles > files + 2:  # one MiB is the allocator's
            raise SystemExit(f"{memory:.1f} MiB and {files} files after {WARM_UP} steps, {now:.1f} and {handles} later")
