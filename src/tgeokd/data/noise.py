"""Label noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tgeokd.errors import InputError

__all__ = ["symmetric_noise"]


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
