"""Random numbers as a function of the row number, so that a streamed file needs no list of its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_uniform"]


def row_uniform(rows: NDArray[np.int64], seed: int, purpose: int) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each row.

    The finaliser of splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) applied to
    the row number and a key.

    Args:
        rows: row numbers, shape (N,).
        seed: seed of the run.
        purpose: selects one of several independent sequences.

    Returns:
        Shape (N,).
    """
    key = _mix(np.array([seed * 64 + purpose], dtype=np.uint64))
    bits = _mix(rows.astype(np.uint64) ^ key) >> np.uint64(11)
    return np.ldexp(bits.astype(np.float64), -53)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
