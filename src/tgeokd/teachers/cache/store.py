"""Stored logits of a teacher on disk, read through a memory map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.ids import IdIndex
from tgeokd.utils.errors import InputError

__all__ = ["DESCRIPTION", "DTYPES", "FORMAT", "TeacherCache", "TeacherCacheOptions", "open_arrays"]

FORMAT = 1
DESCRIPTION = "cache.json"
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class TeacherCacheOptions:
    """How stored logits of a teacher are kept. None takes the value of a cache that exists already.

    Attributes:
        views: augmented views of each sample, one per epoch in turn. The default is the smaller of 4 and the number of epochs
            where the training inputs are augmented at random, and 1 otherwise.
        dtype: ``fp16`` (the default), ``bf16`` or ``fp32``.
        top_k: keep this many logits of a sample, the largest, and the total probability of the others. The default is all.
        folder: the default is ``teacher-cache`` in the folder of the run, and a temporary folder for a run without one.
    """

    views: int | None = None
    dtype: Literal["fp16", "bf16", "fp32"] | None = None
    top_k: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("views", self.views), ("top_k", self.top_k)):
            if value is not None and value < 1:
                raise InputError(f"{name} of the teacher cache must be >= 1, not {value}")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype of the teacher cache must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


class TeacherCache:
    """Stored logits of N samples in V views, made by :func:`~tgeokd.teachers.cache.writer.write_cache`.

    A folder with ``cache.json``, which describes the rest; ``ids.i64``; ``digests.i64`` where the inputs have hashes;
    ``logits.<dtype>`` of shape (V, N, K), where K is the number of classes or ``top_k``. With ``top_k`` also ``classes.i32``
    (V, N, K) and ``others.fp32`` (V, N): the logit that the other classes share, which preserves their total probability at
    temperature 1. At higher temperatures these classes become too probable (Jensen's inequality), and the total variation
    distance from the teacher's probabilities is at most the total probability that they get.

    Attributes:
        key: what the logits depend on.
        ids, digests: of the samples and of their inputs, int64, shape (N,); digests are None where unknown.
        num_classes, views: C and V.
        dtype, top_k: as in :class:`TeacherCacheOptions`.

    Raises:
        InputError: where there is no cache, or it is damaged or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            content = json.loads((self.folder / DESCRIPTION).read_text())
        except OSError as error:
            raise InputError(f"{self.folder} is not a teacher cache: it has no {DESCRIPTION}") from error
        except ValueError as error:
            raise InputError(f"the teacher cache {self.folder} is damaged: {DESCRIPTION} is not JSON") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise InputError(f"the teacher cache {self.folder} has format {found}, and this version reads {FORMAT}")
        self._description: dict[str, Any] = content
        self.key: dict[str, str] = content["key"]
        self.num_classes, self.views, self.top_k = content["classes"], content["views"], content["top_k"]
        self.dtype: str = content["dtype"]
        # "c", copy on write: torch requires writable memory, and the files are never changed
        arrays = {name: array for name, (array, _) in open_arrays(self.folder, content, "c").items()}
        self.ids, self.digests = arrays.pop("ids"), arrays.pop("digests", None)
        self._arrays = arrays
        self._index = IdIndex(self.ids, f"the teacher cache {self.folder}")

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: Tensor, view: int = 0) -> Tensor:
        """Logits of samples in a view below V, shape (n, C), float32, on the CPU; ``ids`` as for :meth:`IdIndex.rows`."""
        return self._dense(self._index.rows(ids), self._of(view))

    def on_device(self, view: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A view copied to a device, as a function from stored ids, (n,), to logits, (n, C).

        It does not wait for the device, so it cannot detect an id that is not stored; call :meth:`check_samples` before.
        """
        by_id, rows = self._index.ascending.to(device), self._index.order.to(device)
        arrays = {name: array.to(device) for name, array in self._of(view).items()}
        return lambda ids: self._dense(rows[torch.searchsorted(by_id, ids)], arrays)

    def _of(self, view: int) -> dict[str, Tensor]:
        if not 0 <= view < self.views:
            raise InputError(f"the teacher cache {self.folder} has views 0 to {self.views - 1}, not {view}")
        return {name: array[view] for name, array in self._arrays.items()}

    def _dense(self, rows: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        kept = arrays["logits"].index_select(0, rows).float()
        if self.top_k is None:
            return kept
        rest = arrays["others"].index_select(0, rows)[:, None].expand(-1, self.num_classes)
        return rest.scatter(1, arrays["classes"].index_select(0, rows).long(), kept)

    def check(self, key: Mapping[str, str], options: TeacherCacheOptions, num_classes: int, views: int) -> None:
        """Raise :class:`InputError` unless the cache was made for this key and these options, with what differs."""
        for field, now in key.items():
            if self.key[field] != now:
                name = "teacher weights" if field == "teacher" else field
                length = 16 if field in ("teacher", "samples") else None  # of a hash
                self._refuse(f"other {name}: {self.key[field][:length]} then, {now[:length]} now")
        wanted = {"classes": num_classes, "views": views, "dtype": options.dtype, "top_k": options.top_k}
        for name, value in wanted.items():
            if value not in (None, self._description[name]):
                self._refuse(f"other {name}: {self._description[name]} then, {value} now")

    def check_samples(self, samples: Samples) -> None:
        """Raise :class:`InputError` for the first sample that is :meth:`missing`."""
        reason = self.missing(samples)
        if reason is not None:
            self._refuse(f"other samples: {reason}")

    def missing(self, samples: Samples) -> str | None:
        """The first sample that is not stored, or whose inputs have changed since, in words; None where there is none."""
        unknown = ~torch.isin(samples.ids, self.ids)
        if bool(unknown.any()):
            return f"it holds {len(self)} samples, and no sample {int(samples.ids[unknown][0])}"
        if samples.digests is None or self.digests is None:
            return None  # the fingerprint of the whole data set is a field of the key
        wrong = self.digests[self._index.rows(samples.ids)] != samples.digests
        return f"the inputs of sample {int(samples.ids[wrong][0])} have changed" if bool(wrong.any()) else None

    def _refuse(self, reason: str) -> None:
        raise InputError(
            f"the teacher cache {self.folder} is stale, made with {reason}; delete it, or choose another folder"
        )


def open_arrays(
    folder: Path, description: Mapping[str, Any], mode: Literal["c", "w+"]
) -> dict[str, tuple[Tensor, np.memmap[Any, Any]]]:
    """The arrays of a cache and their memory maps, for reading (``c``) or creating (``w+``) its files."""
    n, views, top_k, dtype = (description[name] for name in ("samples", "views", "top_k", "dtype"))
    files: dict[str, tuple[str, torch.dtype, tuple[int, ...]]] = {"ids": ("ids.i64", torch.int64, (n,))}
    if description["digests"]:
        files["digests"] = ("digests.i64", torch.int64, (n,))
    files["logits"] = (f"logits.{dtype}", DTYPES[dtype], (views, n, top_k or description["classes"]))
    if top_k is not None:
        files["classes"] = ("classes.i32", torch.int32, (views, n, top_k))
        files["others"] = ("others.fp32", torch.float32, (views, n))
    arrays = {}
    for name, (file, kind, shape) in files.items():
        path, size = folder / file, math.prod(shape) * kind.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if mode == "c" and found != size:
            raise InputError(f"the teacher cache {folder} is damaged: {file} has {found} bytes, not {size}")
        mapped = np.memmap(path, np.uint8, mode, shape=(size,))
        arrays[name] = torch.from_numpy(mapped).view(kind).view(shape), mapped
    return arrays
