"""Encoded rows on disk: written once per file and settings, then read through memory maps.

Encoding takes two passes over the text: the first counts the values of the training rows, the second encodes. A store is a
folder with memory-mapped arrays of codes, labels and row numbers for each split, the encoder, and a report.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tgeokd.data.tables.counter import row_uniform
from tgeokd.data.tables.encoder import MISSING, UNKNOWN
from tgeokd.data.tables.labels import BadRows
from tgeokd.data.tasks.criteo.encoder import CriteoEncoder
from tgeokd.data.tasks.criteo.reader import COLUMNS, RawFile
from tgeokd.utils.errors import InputError

__all__ = ["SPLITS", "Store", "StoreSettings", "open_store"]

SPLITS = ("train", "held_out", "test")
VERSION = 1  # of the file format; stores of other versions are not used
SPLIT = 0  # purpose of the random numbers that assign rows to splits
ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "codes": ("<i4", (len(COLUMNS),)),
    "label": ("|u1", ()),
    "row": ("<i8", ()),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """Everything besides the file that determines the contents of a store; see :func:`~tgeokd.data.tasks.criteo.task.criteo`.

    The split of a row is a function of its number and the seed, so it is known while the file is streamed; class frequencies
    are equal in all splits up to chance.
    """

    seed: int = 0
    held_out: float = 0.1
    test: float = 0.1
    min_count: int = 10
    max_tracked: int = 2_000_000
    rows: int | None = None
    bad_rows: BadRows = "error"

    def __post_init__(self) -> None:
        if not (self.held_out > 0 and self.test > 0 and self.held_out + self.test < 1):
            raise InputError(f"held_out={self.held_out} and test={self.test} must be shares > 0 with a sum below 1")

    def split(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index into :data:`SPLITS` for each row number, shape (N,)."""
        draw = row_uniform(rows, self.seed, SPLIT)
        return np.where(draw < self.test, 2, np.where(draw < self.test + self.held_out, 1, 0))


class Store:
    """An existing store: its encoder, and a report with counts of rows, labels, codes and missing values as plain JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.encoder = CriteoEncoder.from_dict(json.loads((folder / "encoder.json").read_text()))
            self.report: dict[str, Any] = json.loads((folder / "report.json").read_text())
            for split in SPLITS:
                for name in ARRAYS:
                    self.array(split, name)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"the encoded rows in {folder} are damaged; delete that folder to encode them again"
            ) from error

    def array(self, split: str, name: str) -> NDArray[Any]:
        """A memory map: ``codes`` int32 (n, 39), ``label`` uint8 (n,) or ``row`` int64 (n,)."""
        array: NDArray[Any] = np.load(self.folder / f"{split}.{name}.npy", mmap_mode="r")
        return array


def open_store(path: Path, settings: StoreSettings, cache: Path) -> Store:
    """The store of a file under some settings, written if there is none for the current state of the file.

    It is written to a temporary folder and renamed, so other processes see a complete store or none; of several processes that
    write the same store at the same time, one wins.

    Raises:
        InputError: for a file that cannot be read, a bad row, too few rows, or a cache that cannot be written.
    """
    raw = RawFile(path, bad_rows=settings.bad_rows, rows=settings.rows)  # checks the format before anything is written
    state = _state(path)
    key = json.dumps([VERSION, path.name, state, dataclasses.asdict(settings)])
    target = cache / f"{path.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if target.is_dir():
        logger.info("using the encoded rows in %s", target)
        return Store(target)
    making = cache / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        making.mkdir(parents=True)
        logger.info("encoding %s into %s", path, target)
        _make(raw, settings, making)
        if _state(path) != state:
            raise InputError(f"{path} changed while it was being read")
        try:
            making.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has written the same content
                raise
    except OSError as error:
        raise InputError(
            f"cannot write encoded rows to {cache}: {error.strerror}; data.cache sets another folder"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Store(target)


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time, which identify the contents of the file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _make(raw: RawFile, settings: StoreSettings, folder: Path) -> None:
    size: Counter[str] = Counter()
    clicks: Counter[str] = Counter()

    def training_rows() -> Iterator[pl.DataFrame]:
        for block in raw:
            split = settings.split(block.rows)
            for i, name in enumerate(SPLITS):
                size[name] += int((split == i).sum())
                clicks[name] += int(block.label[split == i].sum())
            yield block.frame.filter(split == 0)

    encoder, undercount = CriteoEncoder.fit(
        training_rows(), min_count=settings.min_count, max_tracked=settings.max_tracked
    )
    for name in SPLITS:
        if not 0 < clicks[name] < size[name]:
            raise InputError(
                f"{raw.path}: too few rows: {size[name]} {name} rows with {clicks[name]} clicks; every split needs rows "
                "with and without a click"
            )
    report = {
        "rows": sum(size.values()),
        "skipped_rows": dict(raw.skipped),
        "clicks": sum(clicks.values()),
        "splits": {name: {"rows": size[name], "clicks": clicks[name]} for name in SPLITS},
        "codes": dict(zip(COLUMNS, encoder.inputs.categories, strict=True)),
        "counts_too_low_by_at_most": undercount,
        **_encode(raw, encoder, settings, folder, size),
    }
    (folder / "encoder.json").write_text(json.dumps(encoder.to_dict()))
    (folder / "report.json").write_text(json.dumps(report, indent=2))


def _encode(
    raw: RawFile, encoder: CriteoEncoder, settings: StoreSettings, folder: Path, size: Counter[str]
) -> dict[str, Any]:
    """Write the arrays; returns counts of missing values, and of values without a code, by column."""
    missing = np.zeros(len(COLUMNS), dtype=np.int64)
    unknown = {split: np.zeros(len(COLUMNS), dtype=np.int64) for split in SPLITS}
    with ExitStack() as stack:
        files = {
            (split, name): _array_file(stack, folder / f"{split}.{name}.npy", kind, (size[split], *rest))
            for split in SPLITS
            for name, (kind, rest) in ARRAYS.items()
        }
        written: Counter[str] = Counter()
        for block in raw:
            codes, in_split = encoder.codes(block.frame), settings.split(block.rows)
            missing += (codes == MISSING).sum(axis=0)
            for i, split in enumerate(SPLITS):
                here = in_split == i
                written[split] += int(here.sum())
                unknown[split] += (codes[here] == UNKNOWN).sum(axis=0)
                for name, content in (("codes", codes), ("label", block.label), ("row", block.rows)):
                    files[split, name].write(np.ascontiguousarray(content[here], dtype=ARRAYS[name][0]).data)
    if written != size:
        raise InputError(f"{raw.path} changed while it was being read")
    return {
        "missing_values": _by_column(missing),
        "values_without_a_code": {split: _by_column(counts) for split, counts in unknown.items()},
    }


def _by_column(counts: NDArray[np.int64]) -> dict[str, int]:
    return {column: int(n) for column, n in zip(COLUMNS, counts, strict=True) if n}


def _array_file(stack: ExitStack, path: Path, kind: str, shape: tuple[int, ...]) -> BinaryIO:
    """A new ``.npy`` file, open after its header; the values are appended block by block."""
    file = stack.enter_context(path.open("wb"))
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file
