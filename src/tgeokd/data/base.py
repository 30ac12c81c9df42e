"""What a task's data is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tgeokd.errors import InputError
from tgeokd.loaders import joined

__all__ = ["TaskData", "symmetric_noise"]


@dataclass(frozen=True)
class TaskData:
    """Splits of a task.

    Attributes:
        train: samples to train on.
        held_out: samples for the outer problem, early stopping and choices; disjoint from ``train`` and ``test``.
        test: samples to report on, used for nothing else.
        num_classes: C.
        corrupted: which training labels are known to be wrong, shape (len(train),), bool; None where unknown.
    """

    train: Dataset[Any]
    held_out: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    corrupted: Tensor | None = None

    def training_loader(self, batch_size: int, *, with_held_out: bool = False) -> DataLoader[Any]:
        """Shuffled training batches, on request with the held-out samples among them."""
        dataset = joined(self.train, self.held_out) if with_held_out else self.train
        return DataLoader(dataset, batch_size, shuffle=True)

    @staticmethod
    def ordered_loader(dataset: Dataset[Any], batch_size: int = 1024) -> Iterable[Any]:
        """Batches of a split in its own order."""
        return DataLoader(dataset, batch_size)


def symmetric_noise(target: Tensor, rate: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the labels at random: each by a class drawn uniformly from all classes.

    One in C of the replaced labels is drawn as it was, so the share of wrong labels is about ``rate (1 - 1 / C)``.

    Args:
        target: class indices, shape (N,).
        rate: share of labels replaced, in [0, 1]; ``round(rate N)`` of them.
        num_classes: C.
        seed: of the choice.

    Returns:
        The noisy labels, shape (N,), and which of them are wrong now, shape (N,), bool.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"noise must lie in [0, 1], not {rate}")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(target))[: round(rate * len(target))]
    noisy = target.clone()
    noisy[chosen] = torch.from_numpy(generator.integers(0, num_classes, size=len(chosen)))
    return noisy, noisy != target
