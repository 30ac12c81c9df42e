"""Tables from CSV and Parquet files, with the row number of each row in its file."""

from __future__ import annotations

import csv
import dataclasses
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.files import sha256

MISSING_TEXT = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""Missing values in a CSV file, after surrounding blanks are removed."""

BadRows = Literal["error", "skip"]
SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}


@dataclass(frozen=True)
class Table:
    """Rows of a file."""

    frame: pl.DataFrame
    rows: NDArray[np.int64]  # row numbers in the file, counted from 0 after the header, shape (len(frame),)
    source: str  # name of the file in messages
    total: int  # rows of the file, including those left out
    sha256: str

    def filter(self, keep: NDArray[np.bool_]) -> Table:
        """The rows where ``keep`` is true."""
        return dataclasses.replace(self, frame=self.frame.filter(pl.Series(keep)), rows=self.rows[keep])


def read_table(
    path: Path,
    *,
    source: str | None = None,
    bad_rows: BadRows = "error",
    header: Sequence[str] | None = None,
    skip_lines: int = 0,
) -> Table:
    """A table from ``.csv``, ``.tsv`` (both also ``.gz``) or ``.parquet``.

    In text files, blanks around values are removed and :data:`MISSING_TEXT` becomes null. A column has integers or floats
    where all its values are such numbers without leading zeros (which codes have), and text otherwise.

    Args:
        path: the file.
        source: its name in messages; the path by default.
        bad_rows: how to treat a CSV row with too few or too many values: ``error``, or ``skip`` to leave it out.
        header: names of the columns of a CSV file without a header line.
        skip_lines: lines to skip at the start of a CSV file.
    """
    source = source or str(path)
    if not path.is_file():
        raise InputError(f"the file {source} does not exist")
    kind = next((suffix for suffix in (*SEPARATORS, ".parquet") if path.name.lower().endswith(suffix)), None)
    if kind is None and header is None:
        raise InputError(f"{source} is not a table: expected {', '.join((*SEPARATORS, '.parquet'))}")
    if kind == ".parquet":
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{source} is not a Parquet file: {one_line(error)}") from error
        skipped: list[int] = []
    else:
        frame, skipped = _read_csv(path, source, bad_rows, SEPARATORS.get(kind or "", ","), header, skip_lines)
    if frame.is_empty():
        raise InputError(f"{source} has no rows" + (" that can be parsed" if skipped else ""))
    total = len(frame) + len(skipped)
    rows = np.delete(np.arange(total, dtype=np.int64), skipped)
    return Table(frame, rows, source, total, sha256(path))


def _read_csv(
    path: Path, source: str, bad_rows: str, separator: str, header: Sequence[str] | None, skip_lines: int
) -> tuple[pl.DataFrame, list[int]]:
    """The rows, and the row numbers of those left out."""
    names = _header(path, source, separator) if header is None else list(header)
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{source} has two columns named {min(twice)!r}")
    before = 1 + skip_lines + (header is None)  # pyarrow's number of the first data row
    skipped: list[int] = []
    wrong: list[str] = []

    def bad(row: Any) -> str:
        skipped.append(row.number - before)
        if bad_rows == "error" and not wrong:
            found = f"{row.actual_columns} values, expected {row.expected_columns}: {row.text[:80]!r}"
            wrong.append(f"row {skipped[0]} (the first is 0) of {source} has {found}")
        return "skip"

    # pyarrow numbers bad rows with one thread only
    read = arrow_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=before - 1)
    parse = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=bad)
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        table = arrow_csv.read_csv(path, read, parse, convert)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {source}: {one_line(error)}") from error
    if wrong:
        raise InputError(wrong[0])
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.select(_typed(column) for column in frame), skipped


def _header(path: Path, source: str, separator: str) -> list[str]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            names = next(csv.reader(lines, delimiter=separator), [])
    except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise InputError(f"cannot read {source}: {one_line(error)}") from error
    if not names:
        raise InputError(f"{source} is empty")
    return [name.strip() for name in names]


def _typed(text: pl.Series) -> pl.Series:
    """A column of text as integers or floats where all its values are such numbers."""
    text = text.str.strip_chars()
    text = text.set(text.is_in(MISSING_TEXT), None)
    if text.null_count() == len(text) or text.str.contains(r"^[+-]?0\d").any():
        return text
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    return text
