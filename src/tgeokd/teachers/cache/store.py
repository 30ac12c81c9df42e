"""A teacher's logits on disk, made once, read through a memory map."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.ids import IdIndex
from tgeokd.utils.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["StoredDtype", "TeacherCache", "TeacherCacheOptions"]

logger = logging.getLogger(__name__)

StoredDtype = Literal["fp16", "bf16", "fp32"]

FORMAT = 1
DESCRIPTION = "cache.json"
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FIELDS = {  # of the key, as they are called in messages
    "teacher": "teacher weights",
    "precision": "precision",
    "preprocessing": "preprocessing",
    "augmentation": "augmentation",
    "samples": "samples",
}


@dataclass(frozen=True)
class TeacherCacheOptions:
    """How a teacher's predictions are kept. What is None is as in the cache that is there already.

    Attributes:
        views: augmented views of each sample, used in turn, one an epoch; by default 4 where the training inputs are augmented
            at random, but no more than there are epochs, and 1 otherwise.
        dtype: ``fp16`` (by default), ``bf16`` or ``fp32``.
        top_k: keep so many logits of a sample, the largest, and the probability of all others together; by default all.
        folder: where; by default ``teacher-cache`` in the folder of the run, and without one a temporary folder.
    """

    views: int | None = None
    dtype: StoredDtype | None = None
    top_k: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("views", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} of the teacher cache must be >= 1, not {value}")
        if self.dtype is not None and self.dtype not in get_args(StoredDtype):
            raise InputError(f"dtype of the teacher cache must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


class TeacherCache:
    """The logits of N samples in V views, found by sample id.

    With ``top_k`` the K largest logits of a sample are kept, and of the others the logarithm of their mean exponential, which
    stands for each of them. Probabilities at temperature 1 are then those of the teacher for the classes kept, and all sum to
    1. At a temperature above 1 the others together come out too probable, by Jensen's inequality, and the total variation
    between the teacher's softened probabilities and these is at most what these give the others together.

    Args:
        folder: as :meth:`write` made it.

    Attributes:
        ids: of the samples, int64, shape (N,).
        digests: of their inputs (:func:`~tgeokd.teachers.cache.key.row_digests`), int64, shape (N,); None where not known.
        key: what the logits depend on.
        num_classes: C.
        views: V.
        dtype: of the file.
        top_k: K, or None for all logits.

    Raises:
        InputError: for a folder that is missing, damaged, or of another version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            content = json.loads((self.folder / DESCRIPTION).read_text())
        except OSError as error:
            raise InputError(f"{self.folder} is no teacher cache: it has no {DESCRIPTION}") from error
        except ValueError as error:
            raise InputError(f"the teacher cache {self.folder} is damaged: {DESCRIPTION} is not JSON") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise InputError(f"the teacher cache {self.folder} has format {found}, and this version reads {FORMAT}")
        self.key: dict[str, str] = content["key"]
        self.num_classes, self.views, self.top_k = content["classes"], content["views"], content["top_k"]
        self.dtype: str = content["dtype"]
        n = content["samples"]
        self._width = self.num_classes if self.top_k is None else self.top_k
        self.ids = self._map("ids.i64", torch.int64, (n,))
        self.digests = self._map("digests.i64", torch.int64, (n,)) if content["digests"] else None
        self._logits = self._map(f"logits.{self.dtype}", DTYPES[self.dtype], (self.views, n, self._width))
        if self.top_k is not None:
            self._classes = self._map("classes.i32", torch.int32, (self.views, n, self.top_k))
            self._others = self._map("others.fp32", torch.float32, (self.views, n))
        self._index = IdIndex(self.ids, f"the teacher cache {self.folder}")

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: Tensor, view: int = 0) -> Tensor:
        """Logits of samples.

        Args:
            ids: whole numbers, shape (n,), in any order, repeats allowed; best on the CPU, as a loader gives them.
            view: which of the V views.

        Returns:
            Shape (n, C), float32, on the CPU.

        Raises:
            InputError: for an id, or a view, that is not stored.
        """
        return self._dense(self._index.rows(ids), *self._of(view))

    def on_device(self, view: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A view copied to a device, as a function from ids that are there to logits, (n,) to (n, C).

        It does not wait for the device, and so cannot say that an id is not stored: see :meth:`check_samples` before.
        """
        by_id, rows = self._index.ascending.to(device), self._index.order.to(device)
        logits, classes, others = (part if part is None else part.to(device) for part in self._of(view))
        assert logits is not None
        return lambda ids: self._dense(rows[torch.searchsorted(by_id, ids)], logits, classes, others)

    def _of(self, view: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is stored of a view: logits, and with ``top_k`` their classes and what stands for the others."""
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
        """Refuse to be used for anything but what it was made for.

        Raises:
            InputError: naming what differs, what it was and what it is now.
        """
        for name, called in FIELDS.items():
            if self.key[name] != key[name]:
                there, now = (
                    one[name][:16] if name in ("teacher", "samples") else one[name] for one in (self.key, key)
                )
                self._refuse(f"other {called}: {there} then, {now} now")
        asked = {"classes": num_classes, "views": views, "dtype": options.dtype, "top_k": options.top_k}
        held = {"classes": self.num_classes, "views": self.views, "dtype": self.dtype, "top_k": self.top_k}
        for name, value in asked.items():
            if value is not None and value != held[name]:
                self._refuse(f"other {name}: {held[name]} then, {value} now")

    def check_samples(self, samples: Samples) -> None:
        """Refuse samples that it does not hold, or that had other inputs when it was made."""
        reason = self._missing(samples)
        if reason is not None:
            self._refuse(f"other samples: {reason}")

    def holds(self, samples: Samples) -> bool:
        """Whether it holds these samples, with the inputs that they have now."""
        return self._missing(samples) is None

    def _missing(self, samples: Samples) -> str | None:
        unknown = ~torch.isin(samples.ids, self.ids)
        if bool(unknown.any()):
            return f"it holds {len(self)} samples, and no sample {int(samples.ids[unknown][0])}"
        if samples.digests is None or self.digests is None:
            return None  # the whole is part of the key
        wrong = self.digests[self._index.rows(samples.ids)] != samples.digests
        return f"the inputs of sample {int(samples.ids[wrong][0])} have changed" if bool(wrong.any()) else None

    def _refuse(self, reason: str) -> None:
        raise InputError(
            f"the teacher cache {self.folder} is stale, made with {reason}; delete it, or choose another folder"
        )

    def _map(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """An array of a file, not read yet."""
        path, size = self.folder / name, math.prod(shape) * dtype.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise InputError(f"the teacher cache {self.folder} is damaged: {name} has {found} bytes, not {size}")
        # Copy on write: torch wants memory that it may write to, and the file is never changed.
        mapped = np.memmap(path, np.uint8, "c", shape=(size,))
        return torch.from_numpy(mapped).view(dtype).view(shape)

    # ---- writing

    @classmethod
    def write(
        cls,
        folder: str | Path,
        answers: Iterable[tuple[int, Tensor, Tensor]],
        *,
        key: Mapping[str, str],
        ids: Tensor,
        digests: Tensor | None,
        num_classes: int,
        views: int,
        dtype: StoredDtype = "fp16",
        top_k: int | None = None,
    ) -> TeacherCache:
        """Write a cache, unless it is there. It is there as a whole or not at all, also after a crash.

        Of several processes one asks the teacher and the others wait for it, also where the first is killed: the next goes on
        then.

        Args:
            folder: to make; its parent folders too.
            answers: the teacher's, batch by batch: view, ids (n,), logits (n, C); each sample in each view. Memory is that of
                a batch. Not asked for where the cache is there.
            key: what they depend on.
            ids: of all samples, each once, shape (N,).
            digests: of their inputs, shape (N,), where known.
            num_classes: C.
            views: V.
            dtype: of the file.
            top_k: keep so many logits, None for all.

        Returns:
            The cache; where one was there, that one: see :meth:`check`.

        Raises:
            InputError: for logits that are NaN, infinite or too large for the type, a sample that has no answer, and a folder
                that cannot be written.
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
                        for view, some, logits in answers:
                            writer.put(view, some, logits)
                        writer.close(key, digests)
                        _into_place(temporary, folder)
                    finally:
                        shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise InputError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error
        return cls(folder)


class _Writer:
    """The files of a cache while they are filled."""

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
        self._check_again(view, ids, rows, logits)
        self.logits[view, rows] = logits.to(DTYPES[self.dtype])
        self.filled[view, rows] = True

    def _check_again(self, view: int, ids: Tensor, rows: Tensor, logits: Tensor) -> None:
        """A sample may come more than once, as in an oversampled training set, but not with other answers."""
        again = self.filled[view, rows]
        if bool(again.any()):
            before = self.logits[view, rows[again]].float()
            apart = (logits[again] - before).abs().amax(dim=-1) > 1e-2 * before.abs().amax(dim=-1).clamp(min=1)
            if bool(apart.any()):
                raise InputError(
                    f"the teacher gives different logits for two samples with the id {int(ids[again][apart][0])}; "
                    "ids must name samples"
                )

    def close(self, key: Mapping[str, str], digests: Tensor | None) -> None:
        """Write what is left and force everything to disk."""
        if not bool(self.filled.all()):
            view, row = (int(i) for i in (~self.filled).nonzero()[0])
            raise InputError(f"the teacher was not asked about sample {int(self.index.ids[row])} in view {view}")
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
        if not (folder / DESCRIPTION).exists():  # something else is in the way
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
    """Wait until no other process writes this cache. The system takes the lock from a process that dies, however it dies.

    Where files cannot be locked, two writers both do the work, and the first to finish wins.
    """
    descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _locked(descriptor, folder):
            for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of a writer that died
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is writing the teacher cache %s: waiting for it", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
