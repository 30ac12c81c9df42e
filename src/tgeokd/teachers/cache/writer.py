"""Writing stored logits of a teacher: as a whole or not at all, by one process at a time."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tgeokd.teachers.cache.options import StoredDtype
from tgeokd.teachers.cache.store import DESCRIPTION, DTYPES, FORMAT, TeacherCache
from tgeokd.teachers.ids import IdIndex, check_repeats
from tgeokd.utils.errors import InputError

__all__ = ["write_cache"]

logger = logging.getLogger(__name__)


def write_cache(
    folder: str | Path,
    predictions: Iterable[tuple[int, Tensor, Tensor]],
    *,
    key: Mapping[str, str],
    ids: Tensor,
    digests: Tensor | None,
    num_classes: int,
    views: int,
    dtype: StoredDtype = "fp16",
    top_k: int | None = None,
) -> TeacherCache:
    """Write a cache where there is none. The folder appears when it is complete, also after a crash.

    One of several processes writes, and the others wait for it. If that process is killed, the next one writes.

    Args:
        folder: to create, with its parents.
        predictions: batches of the view, the ids (n,) and the teacher's logits (n, C); each sample in each view. Needs the
            memory of one batch. Not iterated where the cache exists.
        key: what the logits depend on.
        ids: of all samples, distinct, shape (N,).
        digests: of their inputs, shape (N,), where known.
        num_classes: C.
        views: V.
        dtype: of the stored logits.
        top_k: the number of logits to keep per sample; None for all.

    Returns:
        The cache. It may have existed before; see :meth:`TeacherCache.check`.

    Raises:
        InputError: for logits that are NaN, infinite or too large for the type, a sample without logits, and a folder that
            cannot be written.
    """
    folder = Path(folder)
    if top_k is not None and top_k >= num_classes:
        raise InputError(f"top_k of the teacher cache must be below the {num_classes} classes, not {top_k}")
    try:
        if folder.is_dir() and not (folder / DESCRIPTION).exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something else than a teacher cache; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder):
            if not (folder / DESCRIPTION).exists():
                temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
                temporary.mkdir()
                try:
                    writer = _Writer(temporary, IdIndex(ids), num_classes, views, dtype, top_k)
                    for view, batch_ids, logits in predictions:
                        writer.put(view, batch_ids, logits)
                    writer.close(key, digests)
                    _into_place(temporary, folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error
    return TeacherCache(folder)


class _Writer:
    """The files of a cache while they are being filled."""

    def __init__(
        self, folder: Path, index: IdIndex, num_classes: int, views: int, dtype: StoredDtype, top_k: int | None
    ) -> None:
        self.folder, self.index, self.num_classes, self.views = folder, index, num_classes, views
        self.dtype, self.top_k = dtype, top_k
        n, width = len(index), num_classes if top_k is None else top_k
        self._maps: list[np.memmap[Any, Any]] = []
        self.logits = self._new(f"logits.{dtype}", DTYPES[dtype], (views, n, width))
        if top_k is not None:
            self.classes = self._new("classes.i32", torch.int32, (views, n, top_k))
            self.others = self._new("others.fp32", torch.float32, (views, n))
        self.filled = torch.zeros(views, n, dtype=torch.bool)

    def put(self, view: int, ids: Tensor, logits: Tensor) -> None:
        """Store a batch."""
        logits = logits.detach().to("cpu", torch.float32)
        rows = self.index.rows(ids)
        if not bool(torch.isfinite(logits).all()):
            wrong = int(ids[(~torch.isfinite(logits)).any(dim=-1)][0])
            raise InputError(f"the teacher's logits of sample {wrong} are NaN or infinite")
        if float(logits.abs().max()) > torch.finfo(DTYPES[self.dtype]).max:
            raise InputError(f"the teacher's logits are too large for {self.dtype}; use dtype bf16 or fp32")
        if self.top_k is not None:
            logits, classes = logits.sort(dim=-1, descending=True)
            left = logits[:, self.top_k :]
            self.others[view, rows] = left.logsumexp(dim=-1) - math.log(left.shape[-1])
            self.classes[view, rows] = classes[:, : self.top_k].to(torch.int32)
            logits = logits[:, : self.top_k]
        again = self.filled[view, rows]
        if bool(again.any()):  # as in an oversampled training set
            check_repeats(ids[again], logits[again], self.logits[view, rows[again]].float())
        self.logits[view, rows] = logits.to(DTYPES[self.dtype])
        self.filled[view, rows] = True

    def close(self, key: Mapping[str, str], digests: Tensor | None) -> None:
        """Write the other files and flush everything to disk."""
        if not bool(self.filled.all()):
            view, row = (int(i) for i in (~self.filled).nonzero()[0])
            raise InputError(f"the teacher was not queried for sample {int(self.index.ids[row])} in view {view}")
        for name, content in (("ids.i64", self.index.ids), ("digests.i64", digests)):
            if content is not None:
                self._new(name, torch.int64, tuple(content.shape)).copy_(content)
        for mapped in self._maps:
            mapped.flush()
        description = {
            "format": FORMAT,
            "key": dict(key),
            "samples": len(self.index),
            "digests": digests is not None,
            "classes": self.num_classes,
            "views": self.views,
            "dtype": self.dtype,
            "top_k": self.top_k,
        }
        (self.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        for path in self.folder.iterdir():
            _to_disk(path)
        _to_disk(self.folder)

    def _new(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        mapped = np.memmap(self.folder / name, np.uint8, "w+", shape=(math.prod(shape) * dtype.itemsize,))
        self._maps.append(mapped)
        return torch.from_numpy(mapped).view(dtype).view(shape)


def _into_place(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was first."""
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / DESCRIPTION).exists():  # something else has this name
            raise
        return
    _to_disk(folder.parent)


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process writes this cache. The lock ends with the process that holds it.

    On a file system without locks, each process writes its own files, and the first to finish gives them their name.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("another process is writing the teacher cache %s: waiting for it", folder)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.info("%s cannot be locked (%s): writing without a lock", lock.lock_file, error)
    try:
        if lock.is_locked:
            for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()
