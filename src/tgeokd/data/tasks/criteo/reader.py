"""The raw formats of the Criteo click logs, read block by block.

The first line determines the format: 40 tab-separated fields without a header (the challenge's ``train.txt``, a ``day_N`` of
the terabyte logs), or comma-separated values with a header that has at least ``Label``, ``I1``..``I13`` and
``C1``..``C26`` (the challenge's CSV, Criteo_x4). Either may be compressed (``.gz``, ``.bz2``, ``.zst``).
"""

import csv
import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.csv  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tgeokd.data.tables.reader import BadRows
from tgeokd.utils.errors import InputError

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = (*INTEGERS, *CATEGORIES)
LABEL = "label"

BLOCK_BYTES = 8 << 20
LONGEST_FIRST_LINE = 1 << 16
EXPECTED = "40 tab-separated fields (label, I1-I13, C1-C26) without a header, or a csv header of Label, I1-I13, C1-C26"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Consecutive valid rows of a file."""

    rows: NDArray[np.int64]  # row numbers among all data rows of the file, from 0, shape (n,)
    label: NDArray[np.uint8]  # 0 or 1, shape (n,)
    frame: pl.DataFrame  # COLUMNS: integers as floats, categories as text, null for missing values


class RawFile:
    """A raw file; every iteration reads it from the start, in the memory of a few blocks.

    A row is bad if it has a wrong number of fields, a label other than 0 or 1, or an integer column that is not a finite
    number.

    Args:
        path: the file.
        bad_rows: ``error``: the first bad row raises an InputError. ``skip``: bad rows are left out and counted.
        rows: number of data rows to read from the start; None for all.
        labels: False for a file to predict: the label may be missing (39 tab-separated fields as in the challenge's
            ``test.txt``, or no ``Label`` in the header) and is ignored otherwise. Labels are then 0.
        block_bytes: size of a block of text. A line must fit.

    Attributes:
        skipped: number of rows left out in the last complete iteration, by reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        bad_rows: BadRows = "error",
        rows: int | None = None,
        labels: bool = True,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"rows must be >= 1 or null, not {rows}")
        self.path, self.bad_rows, self.labels, self.block_bytes = path, bad_rows, labels, block_bytes
        self.limit = sys.maxsize if rows is None else rows
        self.skipped: Counter[str] = Counter()
        self.header, self.names = _names(path, _first_line(path), labels)
        self._wanted = [LABEL, *COLUMNS] if labels else list(COLUMNS)
        self._first_row = 2 if self.header else 1  # line of the first data row
        logger.info("%s: %s", path, "csv with a header" if self.header else "40 tab-separated fields, no header")

    def __iter__(self) -> Iterator[Block]:
        self.skipped = Counter()
        # Number and number of fields of the rows that the parser left out and that are not counted yet.
        short: deque[tuple[int, int]] = deque()
        next_row = 0
        for batch in self._batches(short):
            rows, next_row = _numbered(len(batch), next_row, [row for row, _ in short])
            while short and short[0][0] < next_row:
                self._skip(short.popleft()[0])
            kept = rows < self.limit
            if kept.any():
                yield self._checked(batch.filter(kept), rows[kept])
            if not kept.all():
                break
        for row, _ in short:
            self._skip(row)

    def _skip(self, row: int) -> None:
        if row < self.limit:
            self.skipped["wrong number of fields"] += 1

    def _batches(self, short: deque[tuple[int, int]]) -> Iterator[pl.DataFrame]:
        """Frames of text, the label first; rows that the parser leaves out are appended to ``short``."""

        def wrong_number(row: pa.csv.InvalidRow) -> str:
            short.append((row.number - self._first_row, row.actual_columns))
            return "skip" if self.bad_rows == "skip" else "error"

        # pyarrow numbers rows with one thread only; without empty lines, the rows after one would have wrong numbers
        read = pa.csv.ReadOptions(use_threads=False, block_size=self.block_bytes, skip_rows=self._first_row - 1)
        parse = pa.csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=wrong_number)
        convert = pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True, include_columns=self._wanted)
        read.column_names, convert.column_types = self.names, dict.fromkeys(self.names, pa.string())
        parse.delimiter, parse.quote_char = (",", '"') if self.header else ("\t", False)
        try:
            with pa.input_stream(str(self.path), compression="detect") as stream:
                for batch in pa.csv.open_csv(stream, read, parse, convert):
                    frame = pl.from_arrow(pa.Table.from_batches([batch]))
                    assert isinstance(frame, pl.DataFrame)
                    yield frame if self.labels else frame.with_columns(pl.lit("0").alias(LABEL))
        except (pa.ArrowInvalid, OSError) as error:
            if short and self.bad_rows == "error":
                line, fields = short[0][0] + self._first_row, short[0][1]
                raise InputError(f"{self.path}, line {line}: {fields} fields, not {len(self.names)}") from error
            raise InputError(f"cannot read {self.path}: {str(error).splitlines()[0]}") from error

    def _checked(self, text: pl.DataFrame, rows: NDArray[np.int64]) -> Block:
        """The block without its bad rows; with ``bad_rows="error"`` an error for the first of them."""
        given = text.select(INTEGERS)
        numbers = given.with_columns(pl.all().cast(pl.Float64, strict=False))
        finite = np.isfinite(numbers.fill_null(np.nan).to_numpy())
        unreadable = given.with_columns(pl.all().is_not_null()).to_numpy() & ~finite
        label = text[LABEL].fill_null("")
        wrong_label = ~label.is_in(["0", "1"]).to_numpy()
        bad = wrong_label | unreadable.any(axis=1)
        if bad.any():
            if self.bad_rows == "error":
                at = int(bad.argmax())
                column = INTEGERS[int(unreadable[at].argmax())]
                what = f"column {column} is {text[column][at]!r}, not a number"
                if wrong_label[at]:
                    what = f"the label is {label[at]!r}, not 0 or 1"
                raise InputError(f"{self.path}, line {rows[at] + self._first_row}: {what}")
            self.skipped["label is not 0 or 1"] += int(wrong_label.sum())
            self.skipped["an integer column is not a number"] += int((bad & ~wrong_label).sum())
            self.skipped = +self.skipped  # drops zeros
            text, numbers, label, rows = text.filter(~bad), numbers.filter(~bad), label.filter(~bad), rows[~bad]
        return Block(rows, label.cast(pl.UInt8).to_numpy(), numbers.with_columns(text.select(CATEGORIES)))


def _numbered(size: int, start: int, left_out: list[int]) -> tuple[NDArray[np.int64], int]:
    """Row numbers of the next ``size`` rows that the parser kept, and the next row number.

    The parser reads ahead, so ``left_out`` may contain rows after these.
    """
    gaps = np.array([row for row in left_out if row >= start], dtype=np.int64)
    # Row k of those kept follows every gap with at most k kept rows between the start and the gap.
    kept = np.arange(size)
    rows = start + kept + np.searchsorted(gaps - start - np.arange(len(gaps)), kept, side="right")
    return rows, int(rows[-1]) + 1 if size else start


def _first_line(path: Path) -> str:
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            start = stream.read(LONGEST_FIRST_LINE)
        line = start.splitlines()[0].decode() if start else ""
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as text: {str(error).splitlines()[0]}") from error
    if not line:
        raise InputError(f"{path} {'is empty' if not start else 'starts with an empty line'}; expected {EXPECTED}")
    return line


def _names(path: Path, line: str, labels: bool) -> tuple[bool, list[str]]:
    """Whether there is a header, and the names of the fields in the spelling of :data:`COLUMNS`."""
    needed = (LABEL, *COLUMNS) if labels else COLUMNS
    tabs = line.count("\t") + 1
    if tabs == 1 + len(COLUMNS):
        return False, [LABEL, *COLUMNS]
    if tabs == len(COLUMNS) and not labels:
        return False, list(COLUMNS)
    given = next(csv.reader([line.removeprefix("\ufeff")]))
    if tabs > 1 or len(given) < 2:
        hint = "; a file without labels cannot be used for training" if tabs == len(COLUMNS) else ""
        found = f"{tabs} tab-separated fields" if tabs > 1 else "one field"
        raise InputError(f"{path}, line 1: {found}; expected {EXPECTED}{hint}")
    spelt = {name.lower(): name for name in (LABEL, *COLUMNS)}
    names = [spelt.get(name.lower(), name) for name in given]
    if missing := [name for name in needed if name not in names]:
        found = f"{len(names)} comma-separated fields lack {missing[0]!r}"
        raise InputError(f"{path}, line 1: {found}; expected {EXPECTED}")
    if len(set(names)) < len(names):
        raise InputError(f"{path}, line 1: the header names a column twice")
    return True, names
