"""Writing stored logits of a teacher: as a whole or not at all, by one process at a time."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.cache.store import DESCRIPTION, DTYPES, FORMAT, TeacherCache, TeacherCacheOptions, open_arrays
from tgeokd.teachers.ids import IdIndex, check_repeats
from tgeokd.utils.errors import InputError

__all__ = ["write_cache"]

logger = logging.getLogger(__name__)

Predictions = Iterable[tuple[int, Tensor, Tensor]]


def write_cache(
    folder: str | Path,
    predictions: Predictions,
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
        predictions: batches of the view, the ids (n,) and the teacher's logits (n, C); each sample in each view. Not iterated
            where the cache exists.
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
    description = {
        "format": FORMAT,
        "key": dict(key),
        "samples": len(samples.ids),
        "digests": samples.digests is not None,
        "classes": num_classes,
        "views": views,
        "dtype": options.dtype or "fp16",
        "top_k": options.top_k,
    }
    try:
        if folder.is_dir() and not (folder / DESCRIPTION).exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something else than a teacher cache; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _create(folder, lambda temporary: _fill(temporary, description, samples, predictions))
    except OSError as error:
        raise InputError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error
    return TeacherCache(folder)


def _create(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it, unless the cache exists. Waits while another process writes.

    On a file system without locks, each process writes, and the first to finish renames its folder.
    """
    done = folder / DESCRIPTION
    if done.exists():
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
        if done.exists():
            return
        temporary.mkdir()
        fill(temporary)
        for path in (*temporary.iterdir(), temporary):
            _to_disk(path)
        if not done.exists():
            temporary.rename(folder)
            _to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


def _fill(folder: Path, description: Mapping[str, Any], samples: Samples, predictions: Predictions) -> None:
    """Write the files. Their memory maps end with the call: Windows does not rename a folder with open files."""
    index = IdIndex(samples.ids)
    opened = open_arrays(folder, description, "w+")
    arrays = {name: array for name, (array, _) in opened.items()}
    arrays["ids"].copy_(index.ids)
    if samples.digests is not None:
        arrays["digests"].copy_(samples.digests)
    filled = torch.zeros(description["views"], len(index), dtype=torch.bool)
    for view, ids, logits in predictions:
        rows = index.rows(ids)
        kept = _kept(ids, logits, description["dtype"], description["top_k"])
        again = filled[view, rows]
        if bool(again.any()):  # as in an oversampled training set
            check_repeats(ids[again], kept["logits"][again], arrays["logits"][view, rows[again]].float())
        for name, values in kept.items():
            arrays[name][view, rows] = values.to(arrays[name].dtype)
        filled[view, rows] = True
    if not bool(filled.all()):
        view, row = (int(i) for i in (~filled).nonzero()[0])
        raise InputError(f"the teacher was not queried for sample {int(index.ids[row])} in view {view}")
    for _, mapped in opened.values():
        mapped.flush()
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _kept(ids: Tensor, logits: Tensor, dtype: str, top_k: int | None) -> dict[str, Tensor]:
    """What is stored of a batch."""
    logits = logits.detach().to("cpu", torch.float32)
    finite = torch.isfinite(logits).all(dim=-1)
    if not bool(finite.all()):
        raise InputError(f"the teacher's logits of sample {int(ids[~finite][0])} are NaN or infinite")
    if float(logits.abs().max()) > torch.finfo(DTYPES[dtype]).max:
        raise InputError(f"the teacher's logits are too large for {dtype}; use dtype bf16 or fp32")
    if top_k is None:
        return {"logits": logits}
    logits, classes = logits.sort(dim=-1, descending=True)
    left = logits[:, top_k:]
    others = left.logsumexp(dim=-1) - math.log(left.shape[-1])
    return {"logits": logits[:, :top_k], "classes": classes[:, :top_k], "others": others}


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
