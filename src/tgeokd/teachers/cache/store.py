"""Stored logits of a teacher on disk, read through a memory map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.cache.options import TeacherCacheOptions
from tgeokd.teachers.ids import IdIndex
from tgeokd.utils.errors import InputError

__all__ = ["DESCRIPTION", "DTYPES", "FORMAT", "TeacherCache"]

FORMAT = 1
DESCRIPTION = "cache.json"
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class TeacherCache:
    """Stored logits of N samples in V views, made by :func:`~tgeokd.teachers.cache.writer.write_cache`.

    A folder with ``cache.json``, which describes the rest; ``ids.i64``; ``digests.i64`` where the inputs have hashes;
    ``logits.<dtype>`` of shape (V, N, K), where K is the number of classes or ``top_k``. With ``top_k`` also ``classes.i32``
    (V, N, K) and ``others.fp32`` (V, N): the logit that the other classes share, which preserves their total probability at
    temperature 1. At higher temperatures these classes become too probable (Jensen's inequality), and the total variation
    distance from the teacher's probabilities is at most the total probability that they get.

    Attributes:
        key: what the logits depend on.
        ids: of the samples, int64, shape (N,).
        digests: of their inputs, int64, shape (N,); None where unknown.
        num_classes, views: C and V.
        dtype: ``fp16``, ``bf16`` or ``fp32``.
        top_k: K, or None where all logits are stored.

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
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise InputError(f"the teacher cache {self.folder} has format {found}, and this version reads {FORMAT}")
        self.key: dict[str, str] = content["key"]
        self.num_classes, self.views, self.top_k = content["classes"], content["views"], content["top_k"]
        self.dtype: str = content["dtype"]
        n = content["samples"]
        width = self.num_classes if self.top_k is None else self.top_k
        self.ids = self._map("ids.i64", torch.int64, (n,))
        self.digests = self._map("digests.i64", torch.int64, (n,)) if content["digests"] else None
        self._logits = self._map(f"logits.{self.dtype}", DTYPES[self.dtype], (self.views, n, width))
        if self.top_k is not None:
            self._classes = self._map("classes.i32", torch.int32, (self.views, n, self.top_k))
            self._others = self._map("others.fp32", torch.float32, (self.views, n))
        self._index = IdIndex(self.ids, f"the teacher cache {self.folder}")

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: Tensor, view: int = 0) -> Tensor:
        """Logits of samples in a view, shape (n, C), float32, on the CPU.

        Args:
            ids: integers, shape (n,), in any order, repeats allowed; preferably on the CPU, as loaders yield them.
            view: below V.

        Raises:
            InputError: for an id or a view that is not stored.
        """
        return self._dense(self._index.rows(ids), *self._of(view))

    def on_device(self, view: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A view copied to a device, as a function from stored ids, (n,), to logits, (n, C).

        The function does not wait for the device, so it does not detect an id that is not stored; call :meth:`check_samples`
        before.
        """
        by_id, rows = self._index.ascending.to(device), self._index.order.to(device)
        logits, classes, others = (tensor if tensor is None else tensor.to(device) for tensor in self._of(view))
        assert logits is not None
        return lambda ids: self._dense(rows[torch.searchsorted(by_id, ids)], logits, classes, others)

    def _of(self, view: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The stored tensors of a view: logits, and with ``top_k`` their classes and the logit of the other classes."""
        if not 0 <= view < self.views:
            raise InputError(f"the teacher cache {self.folder} has views 0 to {self.views - 1}, not {view}")
        if self.top_k is None:
            return self._logits[view], None, None
        return self._logits[view], self._classes[view], self._others[view]

    def _dense(self, rows: Tensor, logits: Tensor, classes: Tensor | None, others: Tensor | None) -> Tensor:
        kept = logits.index_select(0, rows).float()
        if classes is None or others is None:
            return kept
        rest = others.index_select(0, rows)[:, None].expand(-1, self.num_classes)
        return rest.scatter(1, classes.index_select(0, rows).long(), kept)

    def check(self, key: Mapping[str, str], options: TeacherCacheOptions, num_classes: int, views: int) -> None:
        """Check that the cache was made for this key and these options.

        Raises:
            InputError: naming what differs, its stored and its present value.
        """
        for field, now in key.items():
            if self.key[field] != now:
                name = "teacher weights" if field == "teacher" else field
                length = 16 if field in ("teacher", "samples") else None  # of a hash
                self._refuse(f"other {name}: {self.key[field][:length]} then, {now[:length]} now")
        stored = {"classes": self.num_classes, "views": self.views, "dtype": self.dtype, "top_k": self.top_k}
        wanted = {"classes": num_classes, "views": views, "dtype": options.dtype, "top_k": options.top_k}
        for name, value in wanted.items():
            if value not in (None, stored[name]):
                self._refuse(f"other {name}: {stored[name]} then, {value} now")

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

    def _map(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A memory-mapped array of a file."""
        path, size = self.folder / name, math.prod(shape) * dtype.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise InputError(f"the teacher cache {self.folder} is damaged: {name} has {found} bytes, not {size}")
        # Copy on write: torch requires writable memory, and the file is never changed.
        mapped = np.memmap(path, np.uint8, "c", shape=(size,))
        return torch.from_numpy(mapped).view(dtype).view(shape)
