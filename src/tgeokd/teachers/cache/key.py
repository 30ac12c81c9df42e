"""What a teacher's stored predictions depend on, in a form that can be compared with what it was when they were made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from tgeokd.data.loaders import ArrayDataset

__all__ = ["Samples", "row_digests", "samples_of", "teacher_digest", "transforms_of"]

CHUNK = 1 << 21  # words of 8 bytes hashed at a time


class Samples(NamedTuple):
    """What is known of a data set's samples without fetching them.

    Attributes:
        ids: int64, shape (N,).
        digests: of the inputs of each, before any transform, int64, shape (N,); None where only the whole is known.
        whole: the data set's own ``fingerprint()``, where samples have no digests; None where it has none either.
    """

    ids: Tensor
    digests: Tensor | None
    whole: str | None


def samples_of(dataset: Any) -> Samples | None:
    """The samples of a data set in its order; None where it does not tell their ids."""
    if isinstance(dataset, ArrayDataset):
        if dataset.ids is None:
            return None
        parts = dataset.inputs if isinstance(dataset.inputs, tuple) else (dataset.inputs,)
        return Samples(dataset.ids.cpu(), row_digests(parts), None)
    if isinstance(dataset, Subset):
        parent = samples_of(dataset.dataset)
        if parent is None:
            return None
        rows = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return Samples(parent.ids[rows], None if parent.digests is None else parent.digests[rows], None)
    if isinstance(dataset, ConcatDataset):
        found = [samples_of(part) for part in dataset.datasets]
        known = [samples for samples in found if samples is not None]
        if not known or len(known) < len(found):
            return None
        digests = [samples.digests for samples in known if samples.digests is not None]
        complete = torch.cat(digests) if len(digests) == len(known) else None
        return Samples(torch.cat([samples.ids for samples in known]), complete, None)
    ids = getattr(dataset, "ids", None)
    if not isinstance(ids, Tensor) or len(ids) != len(dataset):
        return None
    fingerprint = getattr(dataset, "fingerprint", None)
    return Samples(ids, None, str(fingerprint()) if callable(fingerprint) else None)


def transforms_of(dataset: Any) -> tuple[list[str], list[str]]:
    """What is done to the inputs as they are fetched: the fixed transforms and the random ones, each as its ``repr``."""
    if isinstance(dataset, Subset):
        return transforms_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        pairs = [transforms_of(part) for part in dataset.datasets]
        return tuple(list(dict.fromkeys(one for pair in pairs for one in pair[k])) for k in (0, 1))  # type: ignore[return-value]
    transform = getattr(dataset, "transform", None)
    if transform is None:
        return [], []
    return ([], [repr(transform)]) if getattr(transform, "random", False) else ([repr(transform)], [])


def row_digests(parts: Sequence[Tensor]) -> Tensor:
    """A hash of 64 bits of each row, against confusion rather than forgery. No Python per row.

    Args:
        parts: tensors of shape (N, ...) of any types.

    Returns:
        int64, shape (N,), on the CPU.
    """
    n = len(parts[0])
    total = torch.zeros(n, dtype=torch.int64)
    for place, part in enumerate(parts):
        flat = part.detach().reshape(n, -1)
        if not flat.shape[1]:
            continue
        step = max(1, CHUNK * 8 // (flat.shape[1] * flat.element_size()))
        for start in range(0, n, step):
            raw = flat[start : start + step].contiguous().view(torch.uint8)
            words = nn.functional.pad(raw, (0, -raw.shape[1] % 8)).view(torch.int64)
            weights = _mixed(torch.arange(words.shape[1], device=words.device) + ((place + 1) << 40)) | 1
            total[start : start + step] += (_mixed(words) * weights).sum(dim=1).cpu()
    return _mixed(total)


def _mixed(words: Tensor) -> Tensor:
    """Each word hashed: multiplied twice, the high half folded into the low one before each (wrapping on purpose)."""
    for factor in (-7046029254386353131, -4417276706812531889):
        words = (words ^ ((words >> 32) & 0xFFFFFFFF)) * factor
    return words ^ ((words >> 32) & 0xFFFFFFFF)


def teacher_digest(teacher: Any) -> str | None:
    """A hash of a module's structure, parameters and buffers; None for any other callable, whose answers may be anything."""
    if not isinstance(teacher, nn.Module):
        return None
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if len(flat):
            digest.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
