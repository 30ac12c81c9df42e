"""Small tasks, models and training runs for the tests of methods and training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller, TGeoKD
from tgeokd.data.batch import Batch
from tgeokd.methods.ratio_network import RatioNetwork
from tgeokd.teachers.base import Teacher
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError

FEATURES, CLASSES = 4, 3


# ---- data and models


def data(n: int = 24, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """A linearly separable task with some noise; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, FEATURES, generator=generator)
    x[torch.arange(n), y] += 1.0
    return x, y


def loader(
    n: int = 24, batch_size: int = 8, *, seed: int = 0, classes: int = CLASSES, **options: Any
) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(n, seed, classes)), batch_size, **options)


def validation_loader(n: int = 12) -> DataLoader[Any]:
    return loader(n, 6, seed=7)


def mlp(seed: int, *, classes: int = CLASSES, norm: bool = False, dropout: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(FEATURES, 8)]
    if norm:
        layers.append(nn.BatchNorm1d(8))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.Linear(8, classes))


class CountedTeacher(nn.Linear):
    """Counts the samples that it is queried for."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return super().forward(x)


class Unsized:
    """Batches without a length."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


# ---- runs


def distiller_of(
    method: Any = "kd",
    *,
    student: Any = None,
    teacher: Any = None,
    lr: float = 0.1,
    momentum: float = 0.0,
    scheduler: Any = None,
    **options: Any,
) -> Distiller:
    """A Distiller on the CPU without a progress bar; ``"tgeo, holdout"`` is for loaders that a union cannot mix."""
    if method == "tgeo, holdout":
        method = TGeoKD(outer="holdout")
    student = mlp(1) if student is None else student
    teacher = mlp(2) if teacher is None else teacher
    optimizer = SGD(student.parameters(), lr, momentum=momentum)
    options = {"accelerator": "cpu", "progress": False, **options}
    if scheduler is not None:
        options["scheduler"] = scheduler(optimizer)
    return Distiller(student, teacher, method, optimizer, **options)


class Recorder(Callback):
    """The events of a run in order, the learning rate of each step and the weights of each epoch."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name, self.log = name, [] if log is None else log
        self.rates: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_fit_start(self, distiller: Distiller) -> None:
        self.log.append(f"{self.name}start")

    def on_step_end(self, distiller: Distiller) -> None:
        self.log.append(f"{self.name}step")
        self.rates.append(distiller.optimizer.param_groups[0]["lr"])

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        self.log.append(f"{self.name}epoch")
        self.weights.append(weights(distiller.student))

    def on_fit_end(self, distiller: Distiller) -> None:
        self.log.append(f"{self.name}end")

    def on_exit(self, distiller: Distiller) -> None:
        self.log.append(f"{self.name}exit")


# ---- comparisons


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], *, rtol: float = 0, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def without_seconds(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def seen_by(record: dict[str, Any]) -> int:
    """How many samples the fusion ratios of an epoch were recorded for."""
    return sum(sum(group["histogram"]) for group in record["alpha"].values())


def is_clean(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


@contextlib.contextmanager
def refused(*values: Any, error: type[Exception] = InputError) -> Iterator[None]:
    """The block raises the error with one line that contains all these values."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for value in values:
        assert str(value) in message, f"{value!r} is not in {message!r}"


# ---- single steps


@dataclass
class Samples:
    """Samples with a teacher's logits of them."""

    inputs: Tensor
    target: Tensor
    teacher_logits: Tensor


class TableTeacher(Teacher):
    """Knows the logits of some samples by their ids, which are their positions."""

    def __init__(self, batches: Sequence[Samples]) -> None:
        self.table = torch.cat([b.teacher_logits for b in batches])

    def logits(self, batch: Batch) -> Tensor:
        assert batch.ids is not None
        return self.table[batch.ids]

    @staticmethod
    def numbered(batches: Sequence[Samples], first: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The batches as a loader yields them."""
        found = []
        for batch in batches:
            found.append((batch.inputs, batch.target, torch.arange(first, first + len(batch.target))))
            first += len(batch.target)
        return found


def by_layer(network: RatioNetwork, vector: Tensor) -> dict[str, Tensor]:
    """A vector like omega as weights and biases by layer: `weight0`, `bias0`, `weight1`, ..."""
    parts: dict[str, Tensor] = {}
    start = 0
    for i, layer in enumerate(network.layers):
        for name, like in zip(("weight", "bias"), layer, strict=True):
            parts[f"{name}{i}"] = vector[start : start + like.numel()].view_as(like)
            start += like.numel()
    assert start == len(vector)
    return parts


RATIO_ALONE: dict[str, Any] = {"encoding": "scalar", "label": "given", "prior": False, "penalty": 0.0}
"""Options of a TGeoKD that starts at one half and learns from the labels as they are given."""


def ratio_alone(**options: Any) -> TGeoKD:
    """A TGeoKD without a model of wrong labels and without a penalty: what it learns is the hypergradient's doing alone."""
    return TGeoKD(**(RATIO_ALONE | options))
