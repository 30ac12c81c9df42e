"""How a text table is written: its encoding, its separator, its header and its quotation marks."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.limits import expand

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE = 1 << 16  # bytes at the start of a file that the separator is found in
FITS = 0.9  # share of the rows in a sample that must have as many values as the header
BYTE_ORDER = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True)
class TextFormat:
    """What the user says about a text file; None is found out, or refused where two readings are possible.

    Args:
        separator: the character between two values; a comma, semicolon, tab or bar is found out.
        decimal: the character before the decimals of a number.
        encoding: a name that Python knows; UTF-8, or UTF-16 with a byte order mark, is found out.
        missing: words that mean a missing value, besides nothing at all; by default
            :data:`~tgeokd.data.tables.reader.MISSING_TEXT`.
        likely: the character before decimals where the numbers of the file do not tell.
        verbatim: columns whose text is not taken for formatted numbers such as ``1,234`` and ``12 %``; ``all`` for all.
    """

    separator: str | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    missing: Collection[str] | None = None
    likely: Literal[".", ","] | None = None
    verbatim: Collection[str] | Literal["all"] = ()

    def __post_init__(self) -> None:
        if self.separator is not None:
            written = {"\\t": "\t", "tab": "\t"}.get(self.separator, self.separator)
            if len(written) != 1 or written in '"\r\n' or not written.isascii():
                raise InputError(f"separator must be one ASCII character, or tab, not {self.separator!r}")
            object.__setattr__(self, "separator", written)
        for mark in (self.decimal, self.likely):
            if mark not in (None, ".", ","):
                raise InputError(f"decimal must be '.' or ',', not {mark!r}")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError as error:
                known = "for example utf-8, latin-1, cp1252"
                raise InputError(f"encoding {self.encoding!r} is not known; {known}") from error
        if isinstance(self.missing, str):
            raise InputError(f"missing must be a list of words, not {self.missing!r}")


def read_text(content: bytes, compressed: bool, source: str, encoding: str | None) -> tuple[bytes, str]:
    """The bytes of a text file in UTF-8 without a byte order mark, and the encoding of the file.

    Whether a file without a mark and without a given ``encoding`` is UTF-8 is checked later, see :func:`not_utf8`.
    """
    if compressed:
        content = expand(content, source)
    mark = next((mark for mark in BYTE_ORDER if content.startswith(mark)), b"")
    found = BYTE_ORDER.get(mark)
    if found is not None and encoding is not None and not _same(encoding, found):
        raise InputError(f"encoding={encoding}, but {source} starts with the byte order mark of {found}")
    name = found or encoding or "utf-8"
    if found is None and encoding is not None and _same(encoding, "utf-16"):
        raise InputError(f"{source} has no byte order mark; give encoding=utf-16-le or utf-16-be")
    if _same(name, "utf-8"):
        if b"\0" in content:
            advice = "it may be UTF-16 (encoding=utf-16-le), or no text"
            raise InputError(f"{source} has a null byte, which text in UTF-8 has not; {advice}")
        return content[len(mark) :], "utf-8"
    try:
        text = content[len(mark) :].decode(name)
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{source} is not in {name}: {one_line(error)}") from error
    if found is None:
        _refuse_other_encoding(content, text, source, name)
    return text.encode(), name


def _same(encoding: str, family: str) -> bool:
    """Whether an encoding is of a family: ``utf-16`` is of ``utf-16-le``."""
    given = codecs.lookup(encoding).name.removesuffix("-sig")
    return given == family or family == f"{given}-le" or family == f"{given}-be"


def _refuse_other_encoding(content: bytes, text: str, source: str, encoding: str) -> None:
    """Raise an error for text that a wrong encoding turns into other text without a failure."""
    if text.isascii():
        return
    with_controls = re.search("[\0\x80-\x9f]", text)
    if with_controls:
        name = "cp1252" if codecs.lookup(encoding).name == "iso8859-1" else "another one"
        raise InputError(f"{source} in {encoding} has control characters ({with_controls[0]!r}); try encoding={name}")
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    raise InputError(f"encoding={encoding}, but {source} is valid UTF-8 with letters beyond ASCII; leave encoding out")


def not_utf8(text: bytes, source: str) -> InputError | None:
    """The error for bytes that are not UTF-8, with their place."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{text[error.start]:02x} on line {line}"
        return InputError(f"{source} is not in UTF-8 ({byte}); say which encoding, for example encoding=latin-1")
    return None


def find_separator(text: bytes, source: str, usual: str) -> str:
    """The separator of a table with a header: the only one that divides the header and (nearly) all rows of a sample into the
    same number of values, at least two. ``usual`` where none does; an error where several do.
    """
    sample = text[:SAMPLE]
    if len(text) > SAMPLE:
        sample = sample.rpartition(b"\n")[0]
    lines = sample.decode(errors="replace")
    counts: dict[str, int] = {}
    shares: dict[str, float] = {}
    for separator in (usual, *(each for each in SEPARATORS if each != usual)):
        try:
            rows = [len(row) for row in csv.reader(io.StringIO(lines, newline=""), delimiter=separator) if row]
        except csv.Error:
            continue
        if rows and rows[0] > 1:
            counts[separator] = rows[0]
            shares[separator] = sum(row == rows[0] for row in rows[1:]) / max(len(rows) - 1, 1)
    fitting = [separator for separator, share in shares.items() if share >= FITS]
    if len(fitting) > 1:
        both = " and ".join(f"{SEPARATORS[each]} ({counts[each]} values)" for each in fitting)
        raise InputError(f"{source}: {both} both divide its rows into equally many values; say which with separator")
    if fitting:
        return fitting[0]
    return usual if usual in shares or not shares else max(shares, key=lambda each: shares[each])


def read_header(text: bytes, source: str, separator: str) -> tuple[list[str], int]:
    """The names of the columns, on one line each, and where the first row starts."""
    raw: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in io.BytesIO(text):
            for part in line.splitlines(keepends=True):
                raw.append(part)
                yield part.decode()

    try:
        with any_length():
            names = next((row for row in csv.reader(lines(), delimiter=separator) if row), [])
    except UnicodeDecodeError as error:
        raise not_utf8(text, source) or InputError(f"cannot read {source}: {one_line(error)}") from error
    except csv.Error as error:
        raise InputError(f"cannot read the header of {source}: {one_line(error)}") from error
    if not names:
        raise InputError(f"{source} is empty")
    on_one_line = [" ".join(name.split()) if re.search(r"[\r\n]", name) else name.strip() for name in names]
    return on_one_line, sum(map(len, raw))


def without_blanks(text: bytes, separator: str) -> bytes:
    """The same table without blanks between separators and quotation marks, which would make the marks part of the values."""
    if f'{separator} "'.encode() not in text:
        return text
    rows = io.StringIO(newline="")
    try:
        with any_length():
            lines = io.StringIO(text.decode(), newline="")
            read = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
            csv.writer(rows, delimiter=separator, lineterminator="\n").writerows(read)
    except (csv.Error, UnicodeDecodeError):
        return text  # what is wrong is found and said later
    return rows.getvalue().encode()


def after_lines(text: bytes, number: int) -> int:
    """Where the text after some lines starts."""
    return sum(len(line) for line, _ in zip(io.BytesIO(text), range(number), strict=False))


@contextmanager
def any_length() -> Iterator[None]:
    """Let Python's CSV reader take values of any length, which is a setting of the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def rows_over_lines(text: memoryview, source: str, separator: str) -> list[tuple[int, list[str]]]:
    """The rows with a value over several lines, with their numbers.

    Raises:
        InputError: for a quotation mark without its second one, which makes one value of several rows.
    """
    lines = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="replace", newline="")
    rows = csv.reader(lines, delimiter=separator, strict=True)
    found: list[tuple[int, list[str]]] = []
    number, line = 0, 1
    try:
        with any_length():
            for row in rows:
                if rows.line_num > line and any("\n" in value for value in row):
                    found.append((number, row))
                number, line = number + bool(row), rows.line_num + 1
    except csv.Error as error:
        if rows.line_num == line and "NUL" not in str(error) and "end of data" not in str(error):
            return found  # a stray mark within a line, which the reader takes as part of the value
        raise unmatched(number, source, rows.line_num - line + 1) from error
    return found


def unmatched(row: int, source: str, lines: int) -> InputError:
    """The error for a quotation mark that swallows lines."""
    found = f"row {row} (the first is 0) of {source} has a quotation mark without its second one"
    return InputError(f"{found}: {lines} lines would become one value; remove or double the mark")


def looks_swallowed(row: Sequence[str], separator: str) -> list[list[str]] | None:
    """The rows that the lines of a row would be if its quotation marks were not there; None where they are of unequal length
    and so no rows.
    """
    column = next(i for i, value in enumerate(row) if "\n" in value)
    parts = [line.rstrip("\r").split(separator) for line in row[column].split("\n")]
    parts[0] = [*row[:column], *parts[0]]
    parts[-1] = [*parts[-1], *row[column + 1 :]]
    return parts if all(len(part) == len(row) for part in parts) else None
