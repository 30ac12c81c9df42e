"""What a task's data is, whatever file it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tgeokd.core.metrics import Metrics
from tgeokd.data.loaders import BatchLoader, joined, resident, shuffling

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Encoder", "InputSpec", "TaskData"]


@dataclass(frozen=True)
class InputSpec:
    """What a model must know of its inputs.

    Attributes:
        kind: ``array``: one tensor of shape (N, *shape). ``table``: the pair (numeric, categorical), float32 (N, M) and int64
            (N, K), either of which may have no columns.
        shape: of one sample; of a table ``(M,)``.
        categories: codes of each categorical column of a table, K numbers. Code 0 stands for missing, 1 for unknown or rare.
    """

    kind: Literal["array", "table"]
    shape: tuple[int, ...]
    categories: tuple[int, ...] = ()


class Encoder(Protocol):
    """From rows as a user has them to a table's tensors, fitted on training rows; saved with the student."""

    @property
    def inputs(self) -> InputSpec:
        """What it makes."""
        ...

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """The pair (numeric, categorical) of a frame; ``source`` names the file in errors."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which ``from_dict`` makes the same encoder."""
        ...


@dataclass(frozen=True)
class TaskData:
    """Splits of a task.

    A sample is ``(inputs, target)`` or ``(inputs, target, id)``; the id is its row number in the raw source, test rows counted
    on after the training rows where they come from another file.

    Attributes:
        train: samples to train on.
        held_out: samples for the outer problem, early stopping and choices; disjoint from ``train`` and ``test``.
        test: samples to report on, used for nothing else.
        num_classes: C.
        inputs: what a model must know of the inputs.
        corrupted: which training labels are known to be wrong, shape (len(train),), bool; None where unknown.
        class_names: of the C classes; empty where they have none.
        metrics: what is reported of the test set.
        notes: what was found and done (rows, missing values, checksums, columns), as plain JSON for the results.
        test_groups: named parts of the test set, each a mask of shape (len(test),), bool.
        encoder: of a table: what made its tensors.
        workers: processes that fetch batches; for data that is read and decoded sample by sample.
    """

    train: Dataset[Any]
    held_out: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    inputs: InputSpec
    corrupted: Tensor | None = None
    class_names: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    notes: dict[str, Any] = field(default_factory=dict)
    test_groups: dict[str, Tensor] = field(default_factory=dict)
    encoder: Encoder | None = None
    workers: int = 0

    def on(self, device: torch.device) -> TaskData:
        """The same data with the splits that fit kept on a CUDA device, see :func:`~tgeokd.data.loaders.resident`."""
        if self.workers:  # these fetch in processes of their own
            return self
        train, held_out, test = (resident(part, device) for part in (self.train, self.held_out, self.test))
        return dataclasses.replace(self, train=train, held_out=held_out, test=test)

    def training_loader(self, batch_size: int, *, with_held_out: bool = False) -> DataLoader[Any]:
        """Shuffled training batches, on request with the held-out samples among them."""
        dataset = joined(self.train, self.held_out) if with_held_out else self.train
        return BatchLoader(dataset, batch_size, **shuffling(dataset), **self._fetching())

    def ordered_loader(self, dataset: Dataset[Any], batch_size: int = 1024) -> DataLoader[Any]:
        """Batches of a split in its own order."""
        return BatchLoader(dataset, batch_size, **self._fetching())

    def _fetching(self) -> dict[str, Any]:
        return {"num_workers": self.workers, "persistent_workers": self.workers > 0}
