"""What stored logits depend on, as hashes and text that a later run can compare."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.batch import INTEGER_TYPES
from tgeokd.data.datasets import Fingerprinted, is_random, parts_of
from tgeokd.teachers.ids import first_rows
from tgeokd.utils.errors import InputError

HASHED = 500  # files
CHUNK = 1 << 21  # words of 8 bytes hashed at a time


class Samples(NamedTuple):
    """What is known of the samples of a data set without fetching them."""

    ids: Tensor
    """int64, shape (N,)."""
    digests: Tensor | None
    """Hashes of the inputs before any transform, int64, shape (N,); None where unknown."""
    whole: str | None
    """The ``fingerprint()`` of a data set without digests; None where it has none."""

    def take(self, rows: Tensor) -> Samples:
        """The samples of some rows."""
        return Samples(self.ids[rows], None if self.digests is None else self.digests[rows], self.whole)

    def distinct(self) -> tuple[Samples, list[int] | None]:
        """Each id once, and the rows to fetch: those where an id occurs first if equal ids have equal digests, else None."""
        rows, first = first_rows(self.ids)
        if len(rows) == len(self.ids):
            return self, None
        if self.digests is None:
            twice = int(self.ids[first != torch.arange(len(first))][0])
            raise InputError(
                f"the id {twice} occurs more than once, and these samples cannot be compared: give each its own id"
            )
        wrong = self.ids[self.digests != self.digests[first]]
        if len(wrong):
            raise InputError(f"two samples with different inputs have the id {wrong[0]}; each sample needs its own id")
        return self.take(rows), rows.tolist()


def samples_of(dataset: Any) -> Samples | None:
    """The samples of a data set in its order; None where their ids are unknown."""
    if isinstance(dataset, ArrayDataset):
        tensors = dataset.inputs if isinstance(dataset.inputs, tuple) else (dataset.inputs,)
        return None if dataset.ids is None else Samples(dataset.ids.cpu(), row_digests(tensors), None)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 3 and dataset.tensors[2].dtype in INTEGER_TYPES:
        return Samples(dataset.tensors[2].long().cpu(), row_digests(dataset.tensors[:1]), None)
    if isinstance(dataset, Subset):
        parent = samples_of(dataset.dataset)
        rows = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return None if parent is None else parent.take(rows)._replace(whole=None)
    if isinstance(dataset, ConcatDataset):
        known = [samples for samples in map(samples_of, dataset.datasets) if samples is not None]
        if len(known) < len(dataset.datasets):
            return None
        digests = [samples.digests for samples in known if samples.digests is not None]
        every = torch.cat(digests) if len(digests) == len(known) else None
        return Samples(torch.cat([samples.ids for samples in known]), every, None)
    ids = getattr(dataset, "ids", None)
    if not isinstance(ids, Tensor) or len(ids) != len(dataset):
        return None
    return Samples(ids, None, dataset.fingerprint() if isinstance(dataset, Fingerprinted) else None)


def check_distinct(loader: Any) -> None:
    """Raise an InputError for two samples of a loader's data set with one id and different inputs, where these are known."""
    samples = samples_of(getattr(loader, "dataset", None))
    if samples is not None and (samples.digests is not None or samples.whole is None):
        samples.distinct()


def transforms_of(dataset: Any) -> tuple[list[str], list[str]]:
    """The fixed and the random transforms of the inputs, each as its ``repr``."""
    transforms = [each.transform for each in parts_of(dataset) if getattr(each, "transform", None) is not None]
    fixed, random = ([repr(one) for one in transforms if is_random(one) is wanted] for wanted in (False, True))
    return list(dict.fromkeys(fixed)), list(dict.fromkeys(random))


def row_digests(tensors: Sequence[Tensor]) -> Tensor:
    """A 64-bit hash of each row of tensors (N, ...) of any types, not cryptographic: int64, shape (N,), on the CPU.

    Equal rows have equal hashes, whatever the other rows are.
    """
    n = len(tensors[0])
    total = torch.zeros(n, dtype=torch.int64)
    for place, tensor in enumerate(tensors):
        flat = tensor.detach().reshape(n, -1)
        if not flat.shape[1]:
            continue
        step = max(1, CHUNK * 8 // (flat.shape[1] * flat.element_size()))
        for start in range(0, n, step):
            raw = flat[start : start + step].contiguous().view(torch.uint8)
            words = nn.functional.pad(raw, (0, -raw.shape[1] % 8)).view(torch.int64)
            weights = _mixed(torch.arange(words.shape[1], device=words.device) + ((place + 1) << 40)) | 1
            total[start : start + step] += (_mixed(words) * weights).sum(dim=1).cpu()
    return _mixed(total)


def file_hashes(paths: Iterable[str | os.PathLike[str]]) -> Tensor:
    """The first 8 bytes of the SHA-256 of each file as a little-endian integer: int64, shape (N,)."""
    hashes = []
    for path in paths:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        hashes.append(int.from_bytes(digest[:8], "little", signed=True))
    return torch.tensor(hashes, dtype=torch.int64)


def hashes_of(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """Ids and content hashes, int64, of all samples held in tensors, or of some evenly spaced ones of samples in files.

    Returns:
        Two tensors of one shape; None for a data set without ids, ``paths`` or tensors.
    """
    samples = samples_of(dataset)
    if samples is None:
        return None
    paths = getattr(dataset, "paths", None)
    if paths is None:
        return None if samples.digests is None else (samples.ids, samples.digests)
    rows = torch.linspace(0, len(samples.ids) - 1, min(HASHED, len(samples.ids))).long()
    return samples.ids[rows], file_hashes(os.fsdecode(paths[row]) for row in rows.tolist())


def _mixed(words: Tensor) -> Tensor:
    """A hash of each word: two rounds of folding the high half into the low one and multiplying, modulo 2^64."""
    for factor in (-7046029254386353131, -4417276706812531889):
        words = (words ^ ((words >> 32) & 0xFFFFFFFF)) * factor
    return words ^ ((words >> 32) & 0xFFFFFFFF)


def teacher_digest(teacher: Any) -> str | None:
    """A hash of a module's structure, parameters and buffers; None for any other callable."""
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
