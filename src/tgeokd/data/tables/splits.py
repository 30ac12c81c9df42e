"""Splits of an encoded table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import Rows
from tgeokd.data.split import oversample as oversampled

__all__ = ["table_splits"]


def table_splits(
    inputs: tuple[Tensor, Tensor],
    target: NDArray[np.int64],
    ids: NDArray[np.int64],
    rows: Sequence[Rows],
    *,
    num_classes: int,
    noise: float,
    oversample: bool,
    seed: int,
) -> dict[str, Any]:
    """Training, validation and test set of an encoded table, as arguments of :class:`~tgeokd.data.base.TaskData`.

    Label noise comes before oversampling, which balances the noisy labels, as for a user who has only those. Validation and
    test rows are neither noisy nor repeated.

    Args:
        inputs: numbers (N, M) and codes (N, K) of all rows.
        target: class indices, shape (N,).
        ids: sample ids, shape (N,).
        rows: row numbers of the three sets.
        num_classes: C.
        noise: share of the training labels replaced by a random class.
        oversample: repeat training rows of the rarer classes until all classes are equally frequent.
        seed: seed of the label noise and the oversampling.
    """
    numbers, codes = inputs
    train, held_out, test = rows
    labels, names = torch.from_numpy(target), torch.from_numpy(ids)
    noisy, corrupted = symmetric_noise(labels[train], noise, num_classes, seed)
    kept = oversampled(noisy.numpy(), seed=seed) if oversample else np.arange(len(train))

    def dataset(rows: Rows, target: Tensor) -> ArrayDataset:
        return ArrayDataset((numbers[rows], codes[rows]), target, names[rows])

    return {
        "train": dataset(train[kept], noisy[kept]),
        "held_out": dataset(held_out, labels[held_out]),
        "test": dataset(test, labels[test]),
        "corrupted": corrupted[kept],
        "num_classes": num_classes,
    }
