"""The timed work: two pairs of teacher and student on data of the right shapes, in our loop and in a loop written by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from tgeokd import Distiller, TGeoKD, VanillaKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec
from tgeokd.methods import Method
from tgeokd.models import build_model
from tgeokd.teachers import StoredPredictions
from tgeokd.training.callbacks import Callback

__all__ = ["ALPHA", "METHODS", "MLP", "RESNET", "Workload", "distilled", "handwritten"]

ALPHA = 0.5


@dataclass(frozen=True)
class Workload:
    """A teacher, a student and batches.

    Attributes:
        name: of the pair.
        teacher: builds the teacher.
        student: builds the student.
        optimizer: builds the student's optimizer.
        inputs: builds the inputs of n samples, as the package's own loaders give them.
        num_classes: C.
        temperature: ``tau``.
        threads: torch threads.
        steps: in one measurement; a multiple of the default method's interval.
    """

    name: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    inputs: Callable[[int], Any]
    num_classes: int
    temperature: float
    threads: int
    steps: int
    batch_size: int = 64

    def batches(self, count: int) -> list[tuple[Any, Tensor, Tensor]]:
        """Batches of (inputs, target, ids), the same on every call."""
        torch.manual_seed(0)
        n = self.batch_size
        return [
            (self.inputs(n), torch.randint(self.num_classes, (n,)), torch.arange(i * n, (i + 1) * n))
            for i in range(count)
        ]

    def held_out(self, size: int = 1024) -> torch.utils.data.DataLoader[Any]:
        """Loader of a validation set in which every class occurs."""
        torch.manual_seed(1)
        target = torch.arange(size) % self.num_classes
        ids = torch.arange(size) + 10**6  # none of a training batch
        return torch.utils.data.DataLoader(ArrayDataset(self.inputs(size), target, ids), self.batch_size)

    def build(self) -> tuple[nn.Module, nn.Module, Optimizer]:
        """Teacher in eval mode, student and optimizer, the same on every call."""
        torch.manual_seed(2)
        teacher, student = self.teacher().eval(), self.student()
        return teacher, student, self.optimizer(student)


def _images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def _resnet(name: str) -> Callable[[], nn.Module]:
    return lambda: build_model(name, inputs=InputSpec("array", (3, 32, 32)), num_classes=100)


def _mlp(hidden: tuple[int, ...], dropout: float) -> Callable[[], nn.Module]:
    spec = InputSpec("table", (128,))
    return lambda: build_model("mlp", inputs=spec, num_classes=3, hidden=hidden, dropout=dropout)


RESNET = Workload(
    name="ResNet-56 -> ResNet-20",
    teacher=_resnet("resnet56"),
    student=_resnet("resnet20"),
    optimizer=lambda student: SGD(student.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    inputs=_images,
    num_classes=100,
    temperature=4.0,
    threads=2,
    steps=8,
)
MLP = Workload(
    name="MLP of the hil size",
    teacher=_mlp((512, 256, 128, 64, 32), 0.1),
    student=_mlp((64, 32), 0.0),
    optimizer=lambda student: AdamW(student.parameters(), 3e-3, weight_decay=0.01),
    inputs=lambda n: (torch.randn(n, 128), torch.empty(n, 0, dtype=torch.int64)),
    num_classes=3,
    temperature=2.0,
    threads=1,
    steps=400,
)


# outer="holdout" (the default is "union"), so that all methods train on the same batches.
METHODS: dict[str, Callable[[Workload], Method]] = {
    "kd": lambda work: VanillaKD(alpha=ALPHA),
    "tgeo": lambda work: TGeoKD(outer="holdout"),
    "forward": lambda work: TGeoKD(
        outer="holdout", hypergradient="forward", update_interval=1, outer_batch_size=work.batch_size
    ),
}


class _Clock(Callback):
    """The time at the end of each step."""

    def __init__(self, time_of: Callable[[], float]) -> None:
        self.time_of = time_of
        self.stamps: list[float] = []

    def on_step_end(self, distiller: Distiller) -> None:
        self.stamps.append(self.time_of())


def distilled(
    work: Workload,
    method: str,
    *,
    cached: bool = False,
    callbacks: Sequence[Callback] = (),
    time_of: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """A measurement of our loop: seconds per step of :meth:`Distiller.fit`, without the first.

    Args:
        work: the pair.
        method: of :data:`METHODS`.
        cached: the teacher's predictions are looked up instead of computed.
        callbacks: of the training, beside the clock.
        time_of: the clock, in seconds.
    """
    batches = work.batches(work.steps + 1)
    held_out = work.held_out()

    def measure() -> float:
        teacher, student, optimizer = work.build()
        source: Any = StoredPredictions.from_teacher(teacher, batches, held_out) if cached else teacher
        clock = _Clock(time_of)
        options = {"temperature": work.temperature, "accelerator": "cpu", "progress": False}
        options["allow_bad_teacher"] = True  # it is random
        distiller = Distiller(
            student, source, METHODS[method](work), optimizer, callbacks=[clock, *callbacks], **options
        )
        distiller.fit(batches, held_out, epochs=1)
        return (clock.stamps[-1] - clock.stamps[0]) / work.steps

    return measure


def handwritten(work: Workload) -> Callable[[], float]:
    """A measurement of a loop written by hand: seconds per step, without the first."""
    batches = work.batches(work.steps + 1)
    tau = work.temperature

    def measure() -> float:
        teacher, student, optimizer = work.build()
        student.train()
        total, started = 0.0, 0.0
        for i, (inputs, target, _) in enumerate(batches):
            if i == 1:
                started = time.perf_counter()
            arguments = inputs if isinstance(inputs, tuple) else (inputs,)
            with torch.no_grad():
                teacher_logits = teacher(*arguments)
            logits = student(*arguments)
            kd = F.kl_div(F.log_softmax(logits / tau, 1), F.softmax(teacher_logits / tau, 1), reduction="batchmean")
            loss = ALPHA * tau**2 * kd + (1 - ALPHA) * F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(target)
        return (time.perf_counter() - started) / work.steps

    return measure
