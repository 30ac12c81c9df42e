"""Tables from text and Parquet files, with the row number of each row in its file."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from tgeokd.data.tables.dialect import (
    SEPARATORS,
    TextFormat,
    after_lines,
    find_separator,
    looks_swallowed,
    not_utf8,
    read_header,
    read_text,
    rows_over_lines,
    unmatched,
    without_blanks,
)
from tgeokd.data.tables.headers import refuse_data
from tgeokd.data.tables.numbers import mostly_numbers, parse_numbers
from tgeokd.data.tables.parts import read_parts
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.integrity import sha256
from tgeokd.utils.parquet import read_parquet

MISSING_TEXT = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""Missing values in a text file, after surrounding blanks are removed. In a column of text they are values where quoted."""

BadRows = Literal["error", "skip"]
SUFFIXES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": ",", ".txt.gz": ","}
"""Endings of text files, with the separator that a table has unless another one is found."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Rows of a file."""

    frame: pl.DataFrame
    rows: NDArray[np.int64]  # row numbers in the file, counted from 0 after the header, shape (len(frame),)
    source: str  # name of the file in messages
    total: int  # rows of the file, including those left out
    sha256: str
    format: dict[str, Any] = field(default_factory=dict)  # of a text file: separator, decimal, encoding, numbers
    words: dict[str, dict[str, int]] = field(
        default_factory=dict
    )  # rows by column and word, such as NA, read as missing

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
    text: TextFormat = TextFormat(),  # noqa: B008
) -> Table:
    """A table from ``.csv``, ``.tsv``, ``.txt`` (all also ``.gz``) or ``.parquet``, or a folder of Parquet files.

    In text files, blanks around values are removed and :data:`MISSING_TEXT` becomes null; in a column of text a quoted word
    is a value. A column has integers or floats where all its values are such numbers without leading zeros (which codes have),
    or numbers of one clear format, see :mod:`tgeokd.data.tables.numbers`, and text otherwise.

    Args:
        path: the file or folder.
        source: its name in messages; the path by default.
        bad_rows: how to treat a row of a text file with too few or too many values: ``error``, or ``skip`` to leave it out.
        header: names of the columns of a text file without a header line.
        skip_lines: lines to skip at the start of a text file.
        text: how the text file is written.
    """
    source = source or str(path)
    if path.is_dir():
        frame, digest = read_parts(path, source)
        if frame.is_empty():
            raise InputError(f"{source} has no rows")
        return Table(frame, np.arange(len(frame), dtype=np.int64), source, len(frame), digest)
    if not path.is_file():
        raise InputError(f"the file {source} does not exist")
    kind = next((suffix for suffix in (*SUFFIXES, ".parquet") if path.name.lower().endswith(suffix)), None)
    if kind is None and header is None:
        expected = ", ".join((*SUFFIXES, ".parquet"))
        raise InputError(f"{source} is not a table: expected {expected}, or a folder of Parquet files")
    if kind == ".parquet":
        frame = read_parquet(path, source, hive_partitioning=False)
        if frame.is_empty():
            raise InputError(f"{source} has no rows")
        return Table(frame, np.arange(len(frame), dtype=np.int64), source, len(frame), sha256(path))
    return _TextFile(path, source, text, SUFFIXES.get(kind or "", ",")).table(bad_rows, header, skip_lines)


class _TextFile:
    """A text file, read as a whole."""

    def __init__(self, path: Path, source: str, text: TextFormat, usual: str) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror}") from error
        self.source, self.given, self.usual = source, text, usual
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.text, self.encoding = read_text(content, path.name.lower().endswith(".gz"), source, text.encoding)
        self.missing = MISSING_TEXT if text.missing is None else ("", *text.missing)

    def table(self, bad_rows: BadRows, header: Sequence[str] | None, skip_lines: int) -> Table:
        """The typed rows."""
        start = after_lines(self.text, skip_lines)
        separator = self.given.separator
        if header is None:
            if excel := re.match(rb"sep=(.)\r?\n", self.text):  # as Excel understands it
                start, separator = excel.end(), separator or excel[1].decode(errors="replace")
            body = self.text[start:] if start else self.text
            separator = separator or find_separator(body, self.source, self.usual)
            tidy = without_blanks(body, separator)
            if tidy is not body:
                self.text = body = tidy
                start = 0
            names, length = read_header(body, self.source, separator)
            start += length
        else:
            names, separator = list(header), separator or self.usual
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{self.source} has two columns named {min(twice)!r}, or no header line")
        self.separator, self.names, self.body = separator, names, memoryview(self.text)[start:]
        columns, skipped = self._columns(bad_rows)
        total = len(columns[0]) + len(skipped)
        if not len(columns[0]):
            raise InputError(f"{self.source} has no rows" + (" that can be parsed" if skipped else ""))
        rows = np.delete(np.arange(total, dtype=np.int64), skipped)
        columns, words = self._with_nulls(columns)
        verbatim = self.given.verbatim
        found = parse_numbers(
            columns,
            source=self.source,
            rows=rows,
            decimal=self.given.decimal,
            likely=self.given.likely,
            verbatim=lambda name: verbatim == "all" or name in verbatim,
            separator=separator,
        )
        frame = pl.DataFrame(found.columns)
        frame.columns = names  # polars names a column without a name
        if header is None:
            refuse_data(frame, self.source)
        for row, values in self.long:
            self._refuse_swallowed(row, values, frame)
        how: dict[str, Any] = {"separator": separator, "decimal": found.decimal, "encoding": self.encoding}
        if self.given.missing is not None:
            how["missing"] = list(self.given.missing)
        if found.formats:
            how["numbers"] = found.formats
        self._log(how, words)
        return Table(frame, rows, self.source, total, self.sha256, how, words)

    def _read(self, skip: Any, **convert: Any) -> pa.Table:
        # pyarrow numbers bad rows with one thread only
        read = arrow_csv.ReadOptions(use_threads=False, column_names=self.names)
        parse = arrow_csv.ParseOptions(
            delimiter=self.separator, newlines_in_values=b'"' in self.text, invalid_row_handler=skip
        )
        types = dict.fromkeys(self.names, pa.string())
        options = arrow_csv.ConvertOptions(column_types=types, **convert)
        # pyarrow prints the error of a bad row that is not UTF-8, although it raises one too
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            return arrow_csv.read_csv(pa.BufferReader(pa.py_buffer(self.body)), read, parse, options)
        except (pa.ArrowException, OSError) as error:
            failed = InputError(f"cannot read {self.source}: {one_line(error)}")
            raise not_utf8(self.text, self.source) or failed from error
        finally:
            sys.unraisablehook = hook

    def _columns(self, bad_rows: BadRows) -> tuple[list[pl.Series], list[int]]:
        """The columns as they stand in the file, and the row numbers of those left out."""
        skipped: list[int] = []
        wrong: list[str] = []

        def bad(row: Any) -> str:
            skipped.append(row.number - 1)
            if bad_rows == "error" and not wrong:
                found = f"{row.actual_columns} values, expected {row.expected_columns}: {row.text[:80]!r}"
                wrong.append(f"row {skipped[0]} (the first is 0) of {self.source} has {found}")
            return "skip"

        table = self._read(bad, strings_can_be_null=False)
        self.long: list[tuple[int, list[str]]] = []
        if b'"' in self.text and len(table) + len(skipped) != self._lines():
            self.long = rows_over_lines(self.body, self.source, self.separator)
        if wrong:
            raise InputError(wrong[0])
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return [column.str.strip_chars() for column in frame], skipped

    def _lines(self) -> int:
        """Number of lines with rows, if no value has several lines and no line is blank."""
        end = len(self.text)
        while end and self.text[end - 1] in b"\r\n":
            end -= 1
        return self.text.count(b"\n", len(self.text) - len(self.body), end) + 1

    def _with_nulls(self, columns: list[pl.Series]) -> tuple[list[pl.Series], dict[str, dict[str, int]]]:
        """The columns with missing values as nulls, and the words that were read so."""
        absent = {column.name: mask for column in columns if (mask := column.is_in(self.missing)).any()}
        maybe = [c.name for c in columns if c.name in absent and (absent[c.name] & (c != "")).any()]
        quoted = self._quoted(maybe)
        words: dict[str, dict[str, int]] = {}
        result = []
        for column in columns:
            name = column.name
            text = column.set(absent[name], None) if name in absent else column
            if name in quoted and not mostly_numbers(text):
                text = column.set(absent[name] & ~quoted[name], None)  # among words a quoted word is a value
            if name in maybe:
                lost = column.filter(text.is_null() & (column != "")).alias("word").value_counts(name="rows")
                words |= {name: dict(lost.sort("word").iter_rows())} if len(lost) else {}
            result.append(text)
        return result, words

    def _quoted(self, names: list[str]) -> dict[str, pl.Series]:
        """Where the columns have a missing word in quotation marks."""
        words = [word for word in self.missing if word]
        if not names or not words:
            return {}
        pattern = b'"(?:' + b"|".join(re.escape(word.encode()) for word in words) + b')"'
        if not re.search(pattern, self.body):
            return {}
        options = {"null_values": words, "strings_can_be_null": True, "quoted_strings_can_be_null": False}
        table = self._read(lambda _: "skip", include_columns=names, **options)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return {name: frame[name].is_in(words).fill_null(False) for name in names}

    def _refuse_swallowed(self, row: int, values: list[str], frame: pl.DataFrame) -> None:
        """Raise an error for a value over several lines that would be rows like the others without its quotation marks."""
        parts = looks_swallowed(values, self.separator)
        if parts is None:
            return
        own = next(i for i, value in enumerate(values) if "\n" in value)
        for i, column in enumerate(frame):
            cells = pl.Series([part[i].strip(' "') for part in parts])
            if i == own:
                continue
            if column.dtype.is_numeric():
                fits = cells.is_in(self.missing) | cells.str.contains(r"^[+-]?[\d.,]+")
            else:
                fits = cells.is_in(column.drop_nulls().unique().cast(pl.String).implode())
            if not fits.all():
                return
        raise unmatched(row, self.source, len(parts))

    def _log(self, how: dict[str, Any], words: dict[str, dict[str, int]]) -> None:
        """Say what was found out and is not as usual."""
        said = [
            f"separator {SEPARATORS.get(how['separator'], how['separator'])}" if how["separator"] != self.usual else "",
            "decimal comma" if how["decimal"] == "," else "",
            f"encoding {how['encoding']}" if how["encoding"] != "utf-8" else "",
            *(f"column {name}: {form}" for name, form in how.get("numbers", {}).items()),
        ]
        for name, counts in words.items() if self.given.missing is None else ():
            found = ", ".join(f"{word} ({rows} rows)" for word, rows in counts.items())
            said.append(f"column {name}: {found} missing")
        if any(said):
            logger.info("%s read with %s", self.source, "; ".join(filter(None, said)))
