"""Random tables written in one of ten dialects are read as the same table, or refused in one line."""

from __future__ import annotations

import gzip
import math
import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tgeokd.data.tables.dialect import TextFormat
from tgeokd.data.tables.reader import MISSING_TEXT, read_table
from tgeokd.utils.errors import InputError

CASES = 200  # of each dialect


class Dialect(NamedTuple):
    """How a table is written, and what the reader is told of it."""

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    quotes: str = "needed"  # or "text", or "all"
    missing: str = ""
    booleans: tuple[str, str] = ("true", "false")
    index: bool = False  # a first column without a name, as pandas writes
    line_end: str = "\n"
    grouped: bool = False  # thousands are separated, by the character that is not before decimals
    suffix: str = ".csv"
    told: tuple[str, ...] = ()


DIALECTS = {
    "plain": Dialect(),
    "pandas": Dialect(index=True, booleans=("True", "False")),
    "R": Dialect(quotes="text", missing="NA", booleans=("TRUE", "FALSE")),
    "R, for Europe": Dialect(";", ",", "latin-1", "text", "NA", ("TRUE", "FALSE"), told=("encoding",)),
    "Excel": Dialect("\t", ",", "utf-16", booleans=("WAHR", "FALSCH"), line_end="\r\n", suffix=".txt"),
    "Excel, English": Dialect(encoding="utf-8-sig", line_end="\r\n", grouped=True, booleans=("TRUE", "FALSE")),
    "bank": Dialect(";", encoding="cp1252", quotes="text", missing="?", booleans=("yes", "no"), told=("encoding",)),
    "Europe, grouped": Dialect(";", ",", grouped=True, booleans=("ja", "nein"), told=("decimal",)),
    "database": Dialect("|", quotes="all", booleans=("t", "f"), missing="", suffix=".csv.gz"),
    "commas twice": Dialect(",", ",", missing="-", booleans=("1", "0"), index=True, told=("missing",)),
}

_TEXT = st.one_of(
    st.sampled_from(
        ["York", "Bath", "a b", "Köln", "x;y", "x,y", "5|6", 'say "so"', "two\nlines", 'six" pipe', "b\tc"]
    ),
    st.sampled_from(
        ["NA", "null", "?", "-", "007", "1,5", "1,234", "1.5", "12 %", "$5", "12.03.2020", "on", "inf", "3"]
    ),
    st.text("abcxyzé ÄÖ.,;|'\"\t\n0159-+%$", max_size=6).map(str.strip),
)
_FLOATS = st.one_of(
    st.integers(-(10**7), 10**7).map(lambda n: n / 1000),
    st.integers(-100, 100).map(lambda n: n / 4),
    st.floats(allow_nan=False, width=32),
)
_INTEGERS = st.integers(-(2**40), 2**40) | st.integers(-9999, 9999)
_KINDS = {"integer": _INTEGERS, "float": _FLOATS, "text": _TEXT, "boolean": st.booleans()}
_NAMES = st.one_of(
    st.text("abcdefg _19é", min_size=1, max_size=8).map(str.strip).filter(bool),
    st.sampled_from(["2019", "a\nb", 'c"d', "on"]),
)


def _one_line(name: str) -> str:
    return " ".join(name.split()) if "\n" in name else name


@st.composite
def _tables(draw: Any) -> dict[str, list[Any]]:
    """Two to four columns of one kind each, with missing values."""
    kinds = draw(st.lists(st.sampled_from(list(_KINDS)), min_size=2, max_size=4))
    names = draw(st.lists(_NAMES, min_size=len(kinds), max_size=len(kinds), unique_by=_one_line))
    rows = draw(st.integers(1, 8))
    table = {}
    for name, kind in zip(names, kinds, strict=True):
        values = st.none() | _KINDS[kind] if draw(st.booleans()) else _KINDS[kind]
        table[name] = draw(st.lists(values, min_size=rows, max_size=rows))
    return table


def _written(value: Any, how: Dialect) -> str:
    """A value as text."""
    if value is None or value == "":
        return how.missing
    if isinstance(value, bool):
        return how.booleans[not value]
    if isinstance(value, str):
        return value
    mark, group = how.decimal, {".": ",", ",": "."}[how.decimal]
    text = f"{value:,}" if how.grouped and abs(value) < 1e15 else repr(value)
    return text.translate({ord("."): mark, ord(","): group})


def _cell(value: Any, how: Dialect) -> str:
    text = _written(value, how)
    special = any(character in text for character in (how.separator, '"', "\n", "\r"))
    word = isinstance(value, str) and value != ""
    # a word that means "missing" is quoted where it is a value, as R does
    if special or how.quotes == "all" or (word and (how.quotes == "text" or value in (*MISSING_TEXT, how.missing))):
        return '"' + text.replace('"', '""') + '"'
    return text


def _content(table: dict[str, list[Any]], how: Dialect) -> bytes:
    names = [*([""] if how.index else []), *table]
    lines = [how.separator.join(_cell(name, how) if name else "" for name in names)]
    for number, row in enumerate(zip(*table.values(), strict=True)):
        lines.append(how.separator.join([*([str(number)] if how.index else []), *(_cell(value, how) for value in row)]))
    content = (how.line_end.join(lines) + how.line_end).encode(how.encoding)
    return gzip.compress(content, mtime=0) if how.suffix.endswith(".gz") else content


def _number(text: str, how: Dialect) -> float | None:
    """The number that an author of this dialect means by a text; of another one where it is none in this."""
    bare = re.sub(r"[%$\s]", "", text)
    for mark, group in ((how.decimal, {".": ",", ",": "."}[how.decimal]), (".", ","), (",", ".")):
        whole = rf"(\d+|[1-9]\d{{0,2}}(\{group}\d{{3}})+)"
        if re.fullmatch(rf"[+-]?({whole}(\{mark}\d*)?|\{mark}\d+)", bare) or bare.lstrip("+-") == "inf":
            return float(bare.replace(group, "").replace(mark, "."))
    return None


def _same(value: Any, read: Any, how: Dialect, said: dict[str, int]) -> bool:
    """Whether a value came back: numbers as numbers, words as words; or it is missing and the reader said so."""
    if value is None or value == "":
        return read is None
    if isinstance(value, bool):
        value = _written(value, how)
    if read is None:
        return isinstance(value, str) and said.get(value, 0) > 0
    if isinstance(value, str):
        return read == value or (isinstance(read, int | float) and _number(value, how) == read)
    return isinstance(read, int | float) and math.isclose(value, read, rel_tol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
def test_the_same_table_or_one_clear_error(tmp_path, name):
    how, outcomes = DIALECTS[name], Counter()
    path = tmp_path / f"t{how.suffix}"
    told = {option: [how.missing] if option == "missing" else getattr(how, option) for option in how.told}

    @settings(
        max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(_tables())
    def check(table):
        try:
            path.write_bytes(_content(table, how))
        except UnicodeEncodeError:
            return
        try:
            found = read_table(path, source="t", text=TextFormat(**told))
        except InputError as error:
            outcomes["refused" if len(str(error).splitlines()) == 1 else "unclear"] += 1
            return
        outcomes["read"] += 1
        frame = found.frame.drop("") if how.index else found.frame
        assert frame.columns == list(map(_one_line, table))
        for column, (name, values) in zip(frame, table.items(), strict=True):
            said = found.words.get(column.name, {})
            assert len(column) == len(values)
            pairs = zip(values, column.to_list(), strict=True)
            assert all(_same(value, read, how, said) for value, read in pairs), (name, values, column.to_list())

    check()
    assert outcomes["read"] > CASES / 4, outcomes
