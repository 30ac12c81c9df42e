"""Encoded rows on disk as a data set larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tgeokd.data.arrays import WholeBatch
from tgeokd.data.datasets import FetchesBatches, Joinable, StoredInBlocks
from tgeokd.data.tables.counter import row_uniform
from tgeokd.data.tasks.criteo.store import Store
from tgeokd.utils.errors import InputError

__all__ = ["StoredRows", "StoredSplit"]

FLIP = 1  # purpose of the random numbers that select flipped labels
AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class StoredSplit:
    """One split of a store."""

    store: Store
    name: str
    noise: float = 0.0  # probability that the label of a row is flipped
    seed: int = 0  # of the flips

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise InputError(f"noise must lie in [0, 1], not {self.noise}")

    def flipped(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of the row numbers with a flipped label."""
        return row_uniform(rows, self.seed, FLIP) < self.noise

    def all_flipped(self) -> Tensor | None:
        """Mask of the flipped labels of the split, shape (n,), bool; None without noise."""
        if not self.noise:
            return None
        rows = self.store.array(self.name, "row")
        parts = [self.flipped(rows[start : start + AT_A_TIME]) for start in range(0, len(rows), AT_A_TIME)]
        return torch.from_numpy(np.concatenate(parts))


class StoredRows(Dataset[Any], FetchesBatches, StoredInBlocks, Joinable):
    """Samples ``((numeric (0,), categorical (39,)), target, id)`` of one or more splits, read from disk on access.

    A loader fetches a whole batch by one indexing operation on the memory map. The id is the row number in the raw file.

    Args:
        splits: the splits, one after the other.

    Attributes:
        block_size: rows of a block for shuffling with local reads.
    """

    block_size = 1 << 14

    def __init__(self, splits: Sequence[StoredSplit]) -> None:
        self.splits = tuple(splits)
        self._arrays = [[s.store.array(s.name, name) for name in ("codes", "label", "row")] for s in self.splits]
        self._ends = np.cumsum([len(label) for _, label, _ in self._arrays])

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRows, (self.splits,)  # a worker process opens the memory maps itself

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        (numeric, categorical), target, ids = self.fetch([range(len(self))[index]])
        return (numeric[0], categorical[0]), target[0], ids[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [WholeBatch(self.fetch(indices))]

    def fetch(self, rows: Sequence[int] | Tensor) -> tuple[Any, ...]:
        """The samples of some row numbers as one batch."""
        wanted = np.asarray(rows, dtype=np.int64)
        codes = np.empty((len(wanted), self._arrays[0][0].shape[1]), dtype=np.int64)
        target = np.empty(len(wanted), dtype=np.int64)
        ids = np.empty(len(wanted), dtype=np.int64)
        start = 0
        for split, end, arrays in zip(self.splits, self._ends, self._arrays, strict=True):
            here = np.flatnonzero((wanted >= start) & (wanted < end))
            at = wanted[here] - start
            codes[here], target[here], ids[here] = (array[at] for array in arrays)
            if split.noise:
                target[here] ^= split.flipped(ids[here])
            start = end
        inputs = (torch.empty(len(wanted), 0), torch.from_numpy(codes))
        return inputs, torch.from_numpy(target), torch.from_numpy(ids)

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples followed by those of ``other``."""
        if not isinstance(other, StoredRows):
            return ConcatDataset([self, other])
        return StoredRows((*self.splits, *other.splits))
