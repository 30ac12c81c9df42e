"""A digest of a data set's content that costs no more than a glance, to recognise the data of a run that is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHOLE = 1 << 24  # bytes of a tensor that are read whole, 10 ms; of a larger one as many, in evenly spaced blocks
BLOCKS = 256
NUMBERS = ("targets", "labels", "indices")  # lists of integers in torchvision's data sets and in torch's subsets
LISTED = 10_000  # items of a list that is looked through
DEPTH = 4  # of data sets within data sets


Array = Tensor | np.ndarray[Any, Any]


def content_digest(dataset: Any) -> str | None:
    """A digest of the tensors and arrays that a data set, or a list of batches, holds: 16 hexadecimal digits.

    No sample is fetched, so that no random number is drawn and no file is read. Tensors above 16 MiB are sampled. Subsets and
    concatenations are looked into. Transforms do not count.

    Returns:
        None where it holds no tensors or arrays in public attributes, so that nothing is known.
    """
    digest, known = hashlib.sha256(), False
    for name, array in _arrays(dataset, "", DEPTH):
        known = True
        kind = str(array.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {tuple(array.shape)}".encode())
        for block in _blocks(array):
            digest.update(_bytes(block))
    return digest.hexdigest()[:16] if known else None


def _arrays(value: Any, name: str, depth: int) -> Iterator[tuple[str, Array]]:
    """The tensors and arrays in a data set, a list or a mapping, with where they stand."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided and value.device.type != "meta":
            yield name, value.detach()
    elif isinstance(value, np.ndarray):
        if value.dtype != object:
            yield name, value
    elif depth == 0:
        return
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value if len(value) <= LISTED else ()):
            yield from _arrays(item, f"{name}[{index}]", depth - 1)
    elif isinstance(value, Mapping):
        for key in value:
            yield from _arrays(value[key], f"{name}.{key}", depth - 1)
    elif isinstance(value, Sized) and hasattr(value, "__getitem__") and hasattr(value, "__dict__"):
        for key, item in vars(value).items():
            if key in NUMBERS and isinstance(item, list | range) and all(isinstance(each, int) for each in item):
                yield f"{name}.{key}", np.asarray(item, dtype=np.int64)
            elif not key.startswith("_"):
                yield from _arrays(item, f"{name}.{key}", depth - 1)


def _blocks(array: Array) -> Iterator[Array]:
    """The whole of a small array, evenly spaced blocks of a large one."""
    if array.nbytes <= WHOLE:
        yield array
        return
    rows = max(1, int(len(array) * WHOLE / array.nbytes) // BLOCKS)
    for first in np.linspace(0, len(array) - rows, min(BLOCKS, len(array))).astype(int).tolist():
        yield array[first : first + rows]


def _bytes(array: Array) -> bytes:
    if isinstance(array, Tensor):
        array = array.cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).tobytes()
