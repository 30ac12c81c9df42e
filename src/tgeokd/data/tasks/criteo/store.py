"""Encoded rows on disk: written once per file and settings, then read through memory maps as a data set of any size.

Encoding takes two passes over the text: the first counts the values of the training rows, the second encodes. A store is a
folder with memory-mapped arrays of codes, labels and row numbers for each split, the encoder, and a report.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tgeokd.data.arrays import WholeBatch
from tgeokd.data.datasets import FetchesBatches, Joinable, StoredInBlocks
from tgeokd.data.tables.counter import row_uniform
from tgeokd.data.tables.encoder import MISSING, UNKNOWN
from tgeokd.data.tables.reader import BadRows
from tgeokd.data.tasks.criteo.encoder import CriteoEncoder
from tgeokd.data.tasks.criteo.reader import COLUMNS, RawFile
from tgeokd.utils.documents import read_json, read_json_object
from tgeokd.utils.errors import InputError

SPLITS = ("train", "held_out", "test")
VERSION = 1  # of the file format; stores of other versions are not used
SPLIT, FLIP = 0, 1  # purposes of random numbers: the split of a row, and whether its label is flipped
AT_A_TIME = 1 << 20  # rows whose flips are drawn at a time
ARRAYS = {"codes": "<i4", "label": "|u1", "row": "<i8"}  # types of the values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """Everything besides the file that determines the contents of a store; see :func:`~tgeokd.data.tasks.criteo.task.criteo`.

    The split of a row is a function of its number and the seed, so it is known while the file is streamed.
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
            self.encoder = CriteoEncoder.from_dict(read_json(folder / "encoder.json"))
            self.report = read_json_object(folder / "report.json")
            for split, name in itertools.product(SPLITS, ARRAYS):
                self.array(split, name)
        except (OSError, ValueError, KeyError) as error:
            advice = "delete that folder to encode them again"
            raise InputError(f"the encoded rows in {folder} are damaged; {advice}") from error

    def array(self, split: str, name: str) -> NDArray[Any]:
        """A memory map: ``codes`` int32 (n, 39), ``label`` uint8 (n,) or ``row`` int64 (n,)."""
        array: NDArray[Any] = np.load(self.folder / f"{split}.{name}.npy", mmap_mode="r")
        return array


def open_store(path: Path, settings: StoreSettings, cache: Path) -> Store:
    """The store of a file under some settings, written if there is none for the current state of the file.

    It is written to a temporary folder and renamed, so other processes see a complete store or none; of several processes that
    write the same store at the same time, one wins.
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
        advice = "data.cache sets another folder"
        raise InputError(f"cannot write encoded rows to {cache}: {error.strerror}; {advice}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Store(target)


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time, which identify the contents of the file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _make(raw: RawFile, settings: StoreSettings, folder: Path) -> None:
    size, clicks = Counter[str](), Counter[str]()

    def training_rows() -> Iterator[pl.DataFrame]:
        for block in raw:
            split = settings.split(block.rows)
            for i, name in enumerate(SPLITS):
                size[name] += int((split == i).sum())
                clicks[name] += int(block.label[split == i].sum())
            yield block.frame.filter(split == 0)

    limits = {"min_count": settings.min_count, "max_tracked": settings.max_tracked}
    encoder, undercount = CriteoEncoder.fit(training_rows(), **limits)
    for name in SPLITS:
        if not 0 < clicks[name] < size[name]:
            found = f"{size[name]} {name} rows with {clicks[name]} clicks"
            raise InputError(f"{raw.path}: too few rows: {found}; every split needs rows with and without a click")
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
    files: dict[tuple[str, str], BinaryIO] = {}
    with ExitStack() as stack:
        for split, name in itertools.product(SPLITS, ARRAYS):
            file = files[split, name] = stack.enter_context((folder / f"{split}.{name}.npy").open("wb"))
            shape = (size[split], len(COLUMNS)) if name == "codes" else (size[split],)
            header = {"descr": ARRAYS[name], "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # the values are appended block by block
        written: Counter[str] = Counter()
        for block in raw:
            codes, in_split = encoder.codes(block.frame), settings.split(block.rows)
            missing += (codes == MISSING).sum(axis=0)
            for i, split in enumerate(SPLITS):
                here = in_split == i
                written[split] += int(here.sum())
                unknown[split] += (codes[here] == UNKNOWN).sum(axis=0)
                for name, content in (("codes", codes), ("label", block.label), ("row", block.rows)):
                    files[split, name].write(np.ascontiguousarray(content[here], dtype=ARRAYS[name]).data)
    if written != size:
        raise InputError(f"{raw.path} changed while it was being read")

    def by_column(counts: NDArray[np.int64]) -> dict[str, int]:
        return {column: int(n) for column, n in zip(COLUMNS, counts, strict=True) if n}

    without_code = {split: by_column(counts) for split, counts in unknown.items()}
    return {"missing_values": by_column(missing), "values_without_a_code": without_code}


@dataclass(frozen=True)
class StoredSplit:
    """One split of a store."""

    store: Store
    name: str
    noise: float = 0.0  # probability that the label of a row is flipped
    seed: int = 0  # of the flips

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise InputError(f"noise must lie in [0, 1], not {self.noise}")

    def flipped(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of the row numbers with a flipped label."""
        return row_uniform(rows, self.seed, FLIP) < self.noise

    def all_flipped(self) -> Tensor | None:
        """Mask of the flipped labels of the split, shape (n,), bool; None without noise."""
        if not self.noise:
            return None
        rows = self.store.array(self.name, "row")
        parts = [self.flipped(rows[start : start + AT_A_TIME]) for start in range(0, len(rows), AT_A_TIME)]
        return torch.from_numpy(np.concatenate(parts))


class StoredRows(Dataset[Any], FetchesBatches, StoredInBlocks, Joinable):
    """Samples ``((numeric (0,), categorical (39,)), target, id)`` of one or more splits, read from disk on access.

    A loader fetches a whole batch by one indexing operation on the memory map. The id is the row number in the raw file.
    """

    block_size = 1 << 14

    def __init__(self, splits: Sequence[StoredSplit]) -> None:
        self.splits = tuple(splits)
        self._arrays = [[s.store.array(s.name, name) for name in ("codes", "label", "row")] for s in self.splits]
        self._ends = np.cumsum([len(label) for _, label, _ in self._arrays])

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRows, (self.splits,)  # a worker process opens the memory maps itself

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        (numeric, categorical), target, ids = self.fetch([range(len(self))[index]])
        return (numeric[0], categorical[0]), target[0], ids[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [WholeBatch(self.fetch(indices))]

    def fetch(self, rows: Sequence[int] | Tensor) -> tuple[Any, ...]:
        """The samples of some row numbers as one batch."""
        wanted = np.asarray(rows, dtype=np.int64)
        codes = np.empty((len(wanted), len(COLUMNS)), dtype=np.int64)
        target, ids = np.empty((2, len(wanted)), dtype=np.int64)
        start = 0
        for split, end, arrays in zip(self.splits, self._ends, self._arrays, strict=True):
            here = np.flatnonzero((wanted >= start) & (wanted < end))
            at = wanted[here] - start
            codes[here], target[here], ids[here] = (array[at] for array in arrays)
            if split.noise:
                target[here] ^= split.flipped(ids[here])
            start = end
        inputs = (torch.empty(len(wanted), 0), torch.from_numpy(codes))
        return inputs, torch.from_numpy(target), torch.from_numpy(ids)

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples followed by those of ``other``."""
        if not isinstance(other, StoredRows):
            return ConcatDataset([self, other])
        return StoredRows((*self.splits, *other.splits))
