"""Stored logits of a teacher on disk: read through a memory map, written as a whole or not at all by one process at a time."""

import glob
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.ids import IdIndex, check_repeats
from tgeokd.utils.errors import InputError, cannot_write
from tgeokd.utils.files import reserve, to_disk, user_path
from tgeokd.utils.integrity import sha256

logger = logging.getLogger(__name__)

FORMAT = 2
DESCRIPTION = "cache.json"
FIELDS = {"key", "samples", "digests", "classes", "views", "dtype", "top_k"}
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
Predictions = Iterable[tuple[int, Tensor, Tensor]]


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
    """Stored logits of N samples in V views, made by :func:`write_cache`.

    A folder with ``cache.json``, which describes the rest and has its checksums; ``ids.i64``; ``digests.i64`` where the inputs
    have hashes; ``logits.<dtype>`` of shape (V, N, K), where K is the number of classes or ``top_k``. With ``top_k`` also
    ``classes.i32`` (V, N, K) and ``others.fp32`` (V, N): the logit that the other classes share, which preserves their total
    probability at temperature 1. At higher temperatures these classes become too probable (Jensen's inequality), and the total
    variation distance from the teacher's probabilities is at most the total probability that they get.

    Attributes:
        key: what the logits depend on.
        ids, digests: of the samples and of their inputs, int64, shape (N,); digests are None where unknown.
        num_classes, views: C and V.
        dtype, top_k: as in :class:`TeacherCacheOptions`.

    Raises:
        InputError: where there is no cache, or it is damaged or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = user_path(folder)
        self._description = content = _description(self.folder)
        self.key: dict[str, str] = content["key"]
        self.num_classes, self.views, self.top_k = content["classes"], content["views"], content["top_k"]
        self.dtype: str = content["dtype"]
        # "c", copy on write: torch requires writable memory, and the files are never changed
        arrays = {name: array for name, (array, _) in _open(self.folder, content, "c").items()}
        _verify(self.folder, content["sha256"])
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


def _description(folder: Path) -> dict[str, Any]:
    """The content of the description, which has a checksum of its own."""
    try:
        content = json.loads((folder / DESCRIPTION).read_text())
    except OSError as error:
        raise InputError(f"{folder} is not a teacher cache: it has no {DESCRIPTION}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{DESCRIPTION} is not JSON") from error
    content = content if isinstance(content, dict) else {}
    found = content.get("format")
    if found == 1 and content.keys() >= FIELDS:  # had no checksums
        return {**content, "sha256": {}}
    if found not in (None, 1, FORMAT):
        raise InputError(
            f"the teacher cache {folder} has format {found}, and this version reads {FORMAT}: delete the folder"
        )
    if content.pop("digest", None) != _digest(content):
        raise _damaged(folder, f"{DESCRIPTION} differs from its checksum")
    return content


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(
        f"the teacher cache {folder} is damaged: {reason}. Delete the folder: the teacher is queried again"
    )


def _verify(folder: Path, checksums: Mapping[str, str]) -> None:
    """Compare the files with their checksums, each once in this process unless it has changed."""
    for name, expected in checksums.items():
        path = folder / name
        state = path.stat()
        key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
        if key not in _verified:
            if sha256(path) != expected:
                raise _damaged(folder, f"{name} differs from its checksum")
            _verified.add(key)


_verified: set[tuple[str, int, int]] = set()


def _open(
    folder: Path, description: Mapping[str, Any], mode: Literal["c", "r+"]
) -> dict[str, tuple[Tensor, np.memmap[Any, Any]]]:
    """The arrays of a cache and their memory maps, for reading (``c``) or creating (``r+``) its files."""
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
            raise _damaged(folder, f"{file} has {found} bytes, not {size}")
        if mode == "r+":
            reserve(path, size)
        mapped = np.memmap(path, np.uint8, mode, shape=(size,))
        arrays[name] = torch.from_numpy(mapped).view(kind).view(shape), mapped
    return arrays


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
            holds something else.
        StorageError: where it cannot be written.
    """
    folder = user_path(folder)
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
        raise cannot_write(f"the teacher cache {folder}", error) from error
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
            to_disk(path)
        if not done.exists():
            temporary.rename(folder)
            to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


def _fill(folder: Path, description: Mapping[str, Any], samples: Samples, predictions: Predictions) -> None:
    """Write the files. Their memory maps end with the call: Windows does not rename a folder with open files."""
    index = IdIndex(samples.ids)
    opened = _open(folder, description, "r+")
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
    content = {**description, "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir())}}
    content["digest"] = _digest(content)
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
