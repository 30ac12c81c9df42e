"""The data of a task: its splits, and what models and reports need to know of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tgeokd.core.metrics import Metrics
from tgeokd.data.datasets import joined
from tgeokd.data.loaders import BatchLoader, resident, shuffling

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class InputSpec:
    """Types and shapes of the inputs of a model.

    Attributes:
        kind: ``array``: one tensor of shape (N, *shape). ``table``: the pair (numeric, categorical), float32 (N, M) and int64
            (N, K); M or K may be 0. ``tokens``: word pieces of texts, int64 (N, L), padded with 0.
        shape: shape of one sample; ``(M,)`` for a table.
        categories: number of codes of each categorical column of a table, K numbers. Code 0 is missing, 1 unknown or rare. Of
            tokens, the size of the vocabulary, one number.
        normalisation: mean and standard deviation per channel that normalised images, of pixels in [0, 1]; None for others.
    """

    kind: Literal["array", "table", "tokens"]
    shape: tuple[int, ...]
    categories: tuple[int, ...] = ()
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


class Encoder(Protocol):
    """Converts rows of a user's table to tensors; fitted on training rows, stored with the student."""

    @property
    def inputs(self) -> InputSpec:
        """The inputs that :meth:`transform` returns."""

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """The pair (numeric, categorical) of a frame; ``source`` is the name of the file in messages."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the input of :meth:`from_dict`."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The encoder from the output of :meth:`to_dict`."""


@dataclass(frozen=True)
class TaskData:
    """Splits of a task.

    A sample is ``(inputs, target)`` or ``(inputs, target, id)``. The id is the row number in the source; the rows of a test
    file follow those of the training file.

    Attributes:
        train: training set.
        held_out: validation set, for the outer problem, early stopping and model selection; disjoint from the other sets.
        test: test set, used for reporting only.
        num_classes: C.
        inputs: types and shapes of the inputs.
        corrupted: mask of the training labels known to be wrong, shape (len(train),), bool; None where unknown.
        class_names: names of the C classes; empty for none.
        metrics: metrics reported for the test set.
        notes: what was read and done (rows, missing values, checksums, columns), as plain JSON for the results.
        test_groups: named subsets of the test set, each a mask of shape (len(test),), bool.
        encoder: encoder of a table.
        workers: worker processes of the loaders, for data that is read and decoded sample by sample.
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
        """The same data with the splits on a CUDA device where they fit, see :func:`~tgeokd.data.loaders.resident`."""
        if self.workers:  # batches are made in worker processes
            return self
        train, held_out, test = (resident(split, device) for split in (self.train, self.held_out, self.test))
        return dataclasses.replace(self, train=train, held_out=held_out, test=test)

    def training_loader(self, batch_size: int, *, with_held_out: bool = False) -> DataLoader[Any]:
        """Shuffled batches of the training set, or of training and validation set together."""
        dataset = joined(self.train, self.held_out) if with_held_out else self.train
        return BatchLoader(dataset, batch_size, **shuffling(dataset), **self._fetching())

    def ordered_loader(self, dataset: Dataset[Any], batch_size: int = 1024) -> DataLoader[Any]:
        """Batches of a split in its order."""
        return BatchLoader(dataset, batch_size, **self._fetching())

    def _fetching(self) -> dict[str, Any]:
        return {"num_workers": self.workers, "persistent_workers": self.workers > 0}
