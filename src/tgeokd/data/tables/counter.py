"""Random numbers as a function of sample id and seed: the same in any batch, in any order, on any device.

They come from the finaliser of splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014)
applied to the id and a key.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FIELD = 20  # bits used for a number below a bound


def random_bits(ids: Tensor, seed: int, view: int) -> Tensor:
    """63 random bits for each sample id (N,), as int64 >= 0, shape (N,), on the device of ``ids``."""
    return _mix(ids ^ _key(seed, view)) & (2**63 - 1)


def below(bits: Tensor, field: int, bound: int) -> Tensor:
    """Integers in [0, bound), int64, shape (N,), uniform up to a relative error of ``bound / 2^20``.

    Args:
        bits: from :func:`random_bits`, shape (N,).
        field: index of one of three independent bit fields, 0 to 2.
        bound: at most 2^20.
    """
    value: Tensor = (bits >> (_FIELD * field)) & (2**_FIELD - 1)
    return (value * bound) >> _FIELD


def row_uniform(rows: NDArray[np.int64], seed: int, purpose: int) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each row number, shape (N,), so that a streamed file needs no list of its rows.

    ``purpose``, 0 to 63, selects one of several independent sequences.
    """
    bits = _mix(torch.from_numpy(rows.astype(np.int64)) ^ _mix(torch.tensor(seed * 64 + purpose)))
    return np.ldexp(((bits >> 11) & (2**53 - 1)).numpy().astype(np.float64), -53)


@lru_cache(maxsize=64)
def _key(seed: int, view: int) -> int:
    return int(_mix(_mix(torch.tensor(seed)) ^ view))


def _mix(x: Tensor) -> Tensor:
    """int64 multiplication wraps around like unsigned multiplication; the masks undo the sign extension of the shifts."""
    x = x - 0x61C8864680B583EB  # + 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))
