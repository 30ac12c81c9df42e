"""Splits of an encoded table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import Rows, oversample
from tgeokd.data.tables.encoder import FeatureEncoder

__all__ = ["Draws", "table_splits"]


class Draws(NamedTuple):
    """How the training labels and rows are drawn.

    Label noise comes before oversampling, which balances the noisy labels, as for a user who has only those. Validation and
    test rows are neither noisy nor repeated.
    """

    noise: float  # share of the training labels replaced by a random class
    oversample: bool  # repeat training rows of the rarer classes until all classes are equally frequent
    seed: int


def table_splits(
    encoder: FeatureEncoder,
    inputs: tuple[Tensor, Tensor],
    target: NDArray[np.int64],
    ids: NDArray[np.int64],
    splits: Sequence[Rows],
    class_names: Sequence[str],
    draws: Draws,
) -> dict[str, Any]:
    """Training, validation and test set of an encoded table, as arguments of :class:`~tgeokd.data.base.TaskData`.

    Args:
        encoder: encoder of the table.
        inputs: numbers (N, M) and codes (N, K) of all rows.
        target: class indices, shape (N,).
        ids: sample ids, shape (N,).
        splits: row numbers of the three sets.
        class_names: names of the C classes.
        draws: label noise and oversampling.
    """
    train, held_out, test = splits
    labels, names = torch.from_numpy(target), torch.from_numpy(ids)
    noisy, corrupted = symmetric_noise(labels[train], draws.noise, len(class_names), draws.seed)
    kept = oversample(noisy.numpy(), seed=draws.seed) if draws.oversample else np.arange(len(train))

    def dataset(rows: Rows, target: Tensor) -> ArrayDataset:
        return ArrayDataset((inputs[0][rows], inputs[1][rows]), target, names[rows])

    return {
        "train": dataset(train[kept], noisy[kept]),
        "held_out": dataset(held_out, labels[held_out]),
        "test": dataset(test, labels[test]),
        "corrupted": corrupted[kept],
        "num_classes": len(class_names),
        "class_names": tuple(class_names),
        "inputs": encoder.inputs,
        "encoder": encoder,
    }
