"""Cost of the scalar encoding as the number of classes grows, and memory as the number of samples grows.

Any distillation loss computes the softmax normalisers of student and teacher, in time proportional to C. The *overhead* of the
encoding is its further time: seconds of `scalar_from_logits` (all that TGeoKD computes from logits to the input of f_omega)
minus the seconds of `log_softmax` within the same call, without freeing its results. The difference of two separate timings
would drown 0.1 ms of overhead in the noise of 10 ms. Before every call 64 MiB are written, because in a training step the
models empty the caches between two calls. Medians, one thread.

Run: python benchmarks/scale.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings

import torch
from harness import Figure, interleaved, ratios, seconds_of, threads
from torch import Tensor, nn

from tgeokd import Distiller, TGeoKD
from tgeokd.core.geometry.class_means import ClassMeans
from tgeokd.core.geometry.scalar import GeometryFeatures, SparseClassMeans, scalar_from_logits
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.data.arrays import ArrayDataset
from tgeokd.utils.memory import PeakMemory

__all__ = ["figures"]

BATCH, FEW, MANY, WIDTH = 64, 100, 100_000, 16
CALLS = 100  # in one value


class Encoding:
    """A batch of logits over C classes and the timed calls on it."""

    def __init__(self, classes: int) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = torch.randn(BATCH, classes), torch.randn(BATCH, classes)
        self.target = torch.randint(classes, (BATCH,))
        means = ClassMeans(classes)
        means.update(self.teacher.softmax(-1), self.target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most classes have no sample here
            table = means.compute()
        self.means = SparseClassMeans.of(table) if table.is_sparse else table

    def encode(self) -> Tensor:
        return scalar_from_logits(self.student, self.teacher, self.target, self.means, GeometryFeatures())

    def loss(self) -> None:
        """The plain distillation loss on these logits, forward and backward, without any model."""
        logits = self.student.clone().requires_grad_()
        kd, gt = kd_loss(logits, self.teacher, 4.0), gt_loss(logits, self.target)
        fuse(kd, gt, torch.full((BATCH,), 0.5)).mean().backward()


class Normalisers:
    """Seconds spent in `log_softmax` inside a `with` block; results are kept, because freeing them is part of their cost."""

    def __enter__(self) -> Normalisers:
        self.seconds, self.kept, self._own = 0.0, [], torch.Tensor.log_softmax

        def timed(logits: Tensor, dim: int) -> Tensor:
            started = time.perf_counter()
            found = self._own(logits, dim)
            self.kept.append(found)
            self.seconds += time.perf_counter() - started
            return found

        torch.Tensor.log_softmax = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        torch.Tensor.log_softmax = self._own  # type: ignore[method-assign]


def overhead(encoding: Encoding) -> float:
    """Seconds to encode a batch beyond the normalisers, median of many calls."""
    values = []
    elsewhere = torch.zeros(2**24)
    with Normalisers() as normalisers:
        for _ in range(CALLS):
            normalisers.seconds = 0.0
            normalisers.kept.clear()
            elsewhere.add_(1)
            started = time.perf_counter()
            encoding.encode()
            values.append(time.perf_counter() - started - normalisers.seconds)
    return statistics.median(values)


def share(encoding: Encoding) -> float:
    """Overhead of the encoding as a share of a loss without any model."""
    return overhead(encoding) / statistics.median(seconds_of(encoding.loss) for _ in range(CALLS // 4))


def measure(samples: int) -> float:
    """MiB that the survey of the teacher and training steps at C = 8,200 add, with this many training samples."""
    classes = 8200

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    def loader(n: int) -> torch.utils.data.DataLoader[object]:
        return torch.utils.data.DataLoader(ArrayDataset(torch.randn(n, WIDTH), torch.arange(n) % classes), BATCH)

    student, teacher = Model(), Model()
    warnings.simplefilter("ignore")
    train, held_out = loader(samples), loader(BATCH)
    method, optimizer = TGeoKD(outer="train", update_interval=10), torch.optim.SGD(student.parameters(), 0.1)
    options = {"accelerator": "cpu", "progress": False, "allow_bad_teacher": True}  # it is random
    distiller = Distiller(student, teacher, method, optimizer, **options)
    with PeakMemory() as before:
        torch.zeros(1)
    with PeakMemory() as peak:
        distiller.fit(train, held_out, epochs=1)
    return peak.resident_mib - before.resident_mib


def figures(runs: int) -> list[Figure]:
    """The limit on the overhead, its share of a step without models, and memory as the samples grow."""
    with threads(1):
        few, many = Encoding(FEW), Encoding(MANY)
        values = interleaved({"many": lambda: overhead(many), "few": lambda: overhead(few)}, runs)
        micro = [statistics.median(values[name]) * 1e6 / BATCH for name in ("many", "few")]
        found = [
            Figure.of(
                f"scalar encoding, overhead per sample beyond the softmax: C = {MANY:,} / C = {FEW}",
                ratios(values, "many", "few"),
                limit=2.0,
                note=f"microseconds per sample: {micro[0]:.2f} / {micro[1]:.2f}; batch of {BATCH}, one thread",
            )
        ]
        for classes in (1000, 10_000, MANY):
            encoding = Encoding(classes)
            name = f"scalar encoding, overhead / distillation loss forward and backward without models, C = {classes:,}"
            found.append(Figure.of(name, [share(encoding) for _ in range(runs)], note=f"batch of {BATCH}, one thread"))
    memory = [[_in_a_process(samples) for samples in (4 * 16_384, 16_384)] for _ in range(min(runs, 2))]
    note = "MiB that survey and steps add, C = 8200: " + " / ".join(
        f"{statistics.median(column):.0f}" for column in zip(*memory, strict=True)
    )
    return [*found, Figure.of("peak memory: 4 N samples / N samples", [a / b for a, b in memory], note=note)]


def _in_a_process(samples: int) -> float:
    done = subprocess.run([sys.executable, __file__, str(samples)], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        for figure in figures(3):
            print(figure)
