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

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.cache.options import TeacherCacheOptions
from tgeokd.teachers.cache.store import DESCRIPTION, DTYPES, FORMAT, TeacherCache
from tgeokd.teachers.ids import IdIndex, check_repeats
from tgeokd.utils.errors import InputError

__all__ = ["write_cache"]

logger = logging.getLogger(__name__)


def write_cache(
    folder: str | Path,
    predictions: Iterable[tuple[int, Tensor, Tensor]],
    samples: Samples,
    key: Mapping[str, str],
    num_classes: int,
    views: int,
    options: TeacherCacheOptions,
) -> TeacherCache:
    """Write a cache where there is none. The folder appears when it is complete, also after a crash.

    One of several processes writes, and the others wait for it. If that process is killed, the next one writes.

    Args:
        folder: to create, with its parents.
        predictions: batches of the view, the ids (n,) and the teacher's logits (n, C); each sample in each view. Needs the
            memory of one batch. Not iterated where the cache exists.
        samples: all of them, with distinct ids.
        key: what the logits depend on.
        num_classes: C.
        views: V.
        options: ``dtype`` and ``top_k``.

    Returns:
        The cache, which may have existed before; see :meth:`TeacherCache.check`.

    Raises:
        InputError: for logits that are NaN, infinite or too large for the type, a sample without logits, and a folder that
            cannot be written.
    """
    folder = Path(folder)
    if options.top_k is not None and options.top_k >= num_classes:
        raise InputError(f"top_k of the teacher cache must be below the {num_classes} classes, not {options.top_k}")
    try:
        if folder.is_dir() and not (folder / DESCRIPTION).exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something else than a teacher cache; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _new_folder(folder) as temporary:
            if temporary is not None:
                writer = _Writer(temporary, samples, num_classes, views, options)
                for view, ids, logits in predictions:
                    writer.put(view, ids, logits)
                writer.close(key)
    except OSError as error:
        raise InputError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error
    return TeacherCache(folder)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path | None]:
    """A temporary folder that is renamed after the block; None where the cache exists. Waits while another process writes.

    On a file system without locks, each process writes, and the first to finish renames its folder.
    """
    if (folder / DESCRIPTION).exists():
        yield None
        return
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("another process is writing the teacher cache %s: waiting for it", folder)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            logger.info("writing the teacher cache %s without a lock: %s", folder, error)
        if lock.is_locked:
            for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        if (folder / DESCRIPTION).exists():
            yield None
            return
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _to_disk(path)
        if not (folder / DESCRIPTION).exists():
            temporary.rename(folder)
            _to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


class _Writer:
    """The files of a cache while they are being filled; unusable after :meth:`close`."""

    def __init__(
        self, folder: Path, samples: Samples, num_classes: int, views: int, options: TeacherCacheOptions
    ) -> None:
        self.folder, self.samples, self.index = folder, samples, IdIndex(samples.ids)
        self.num_classes, self.views = num_classes, views
        self.dtype, self.top_k = options.dtype or "fp16", options.top_k
        n, width = len(self.index), num_classes if self.top_k is None else self.top_k
        self._maps: list[np.memmap[Any, Any]] = []
        self.logits = self._new(f"logits.{self.dtype}", DTYPES[self.dtype], (views, n, width))
        if self.top_k is not None:
            self.classes = self._new("classes.i32", torch.int32, (views, n, self.top_k))
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

    def close(self, key: Mapping[str, str]) -> None:
        """Write the other files."""
        if not bool(self.filled.all()):
            view, row = (int(i) for i in (~self.filled).nonzero()[0])
            raise InputError(f"the teacher was not queried for sample {int(self.index.ids[row])} in view {view}")
        for name, content in (("ids.i64", self.index.ids), ("digests.i64", self.samples.digests)):
            if content is not None:
                self._new(name, torch.int64, tuple(content.shape)).copy_(content)
        for mapped in self._maps:
            mapped.flush()
        description = {
            "format": FORMAT,
            "key": dict(key),
            "samples": len(self.index),
            "digests": self.samples.digests is not None,
            "classes": self.num_classes,
            "views": self.views,
            "dtype": self.dtype,
            "top_k": self.top_k,
        }
        (self.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        vars(self).clear()  # closes the memory maps: Windows does not rename a folder with open files

    def _new(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        mapped = np.memmap(self.folder / name, np.uint8, "w+", shape=(math.prod(shape) * dtype.itemsize,))
        self._maps.append(mapped)
        return torch.from_numpy(mapped).view(dtype).view(shape)


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
