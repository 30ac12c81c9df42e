"""Columns of text as numbers: plain ones, and those of one clear format such as ``1,234``, ``$1,234``, ``12 %`` or ``12,5``.

Whether a comma is before decimals or between thousands is one decision for a whole file. A number is evidence for one reading
where the other is impossible: ``12,5`` has a decimal comma, ``1,234,567`` and ``1,234.5`` have a decimal point, ``1,234`` can
have either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tgeokd.data.tables.encoder import place
from tgeokd.utils.errors import InputError

SAMPLE = 1000  # values of a text column that tell whether it may have numbers
MOSTLY = 0.9  # share of numbers in a text column above which the other values are taken for mistakes

_CODES = r"^[+-]?(?:0\d|\d{16,}$)"  # of digits, in columns that are not plain numbers
_GAP = r"['\x{2019}\x{a0}\x{202f}]"  # between thousands, and nothing else
_BODY = (
    r"(?i:inf|infinity)|\d+(?:[.,]\d*)?(?:[eE][+-]?\d+)?|[.,]\d+|"
    r"[1-9]\d{0,2}(?:(?:,\d{3})+(?:\.\d*)?|(?:\.\d{3})+(?:,\d*)?|"
    rf"(?:{_GAP}\d{{3}})+(?:[.,]\d*)?|(?: \d{{3}})+[.,]\d+)"
)
_UNITS = "[$€£¥%]"
_NUMBER = rf"^(?:{_UNITS}\s*)?[+-]?\s*(?:{_UNITS}\s*)?(?:{_BODY})(?:\s*{_UNITS})?$"
_PLAIN = r"^[+-]?(?:(?i:inf|infinity)|\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"

_EITHER_COMMA = r"^[+-]?[1-9]\d{0,2},\d{3}$"
_EITHER_POINT = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"
_SMALL = r"^[+-]?\d{1,3}$"
# Numbers of one reading once gaps and units are removed: groups of three or none, then decimals.
_READINGS = {
    ".": r"^[+-]?(?:(?i:inf|infinity)|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)$",
    ",": r"^[+-]?(?:(?i:inf|infinity)|[1-9]\d{0,2}(?:\.\d{3})+(?:,\d*)?|\d+,?\d*(?:[eE][+-]?\d+)?|,\d+(?:[eE][+-]?\d+)?)$",
}
_OTHER = {".": ",", ",": "."}


@dataclass
class Numbers:
    """The columns of a text file, where they are numbers, as numbers.

    Attributes:
        columns: of the file, in order: integers, floats or text.
        decimal: the character before decimals; None where no column tells.
        formats: by column, how its numbers are written unless plainly.
    """

    columns: list[pl.Series]
    decimal: str | None
    formats: dict[str, str] = field(default_factory=dict)


@dataclass
class _Candidate:
    """A column of formatted numbers."""

    text: pl.Series  # without units and gaps
    unit: str
    evidence: set[str]  # decimal characters that at least one value has for sure
    either: str | None  # a value with a comma or points that may be decimals or thousands


def parse_numbers(
    columns: Iterable[pl.Series],
    *,
    source: str,
    rows: NDArray[np.int64],
    decimal: str | None = None,
    likely: str | None = None,
    verbatim: Callable[[str], bool] = lambda _: False,
    separator: str = ",",
) -> Numbers:
    """Columns of text, without blanks around values and null where missing, as numbers where all values are numbers.

    Args:
        columns: of text.
        source: name of the file in messages.
        rows: row numbers in messages.
        decimal: the character before decimals, where the user says it.
        likely: the same, where the numbers do not tell.
        verbatim: whether the numbers of a column are parsed only where they are plain.
        separator: between the values in the file: a file with commas between values seldom has decimal commas.

    Raises:
        InputError: for a column with numbers of several formats, mistakes among formatted numbers, or numbers that can be read
            in two ways.
    """
    texts = list(columns)
    found = [_plain(text) for text in texts]
    judge = _Judge(source, rows)
    candidates = {
        i: candidate
        for i, text in enumerate(texts)
        if found[i].dtype == pl.String and not verbatim(text.name) and (candidate := judge.candidate(text)) is not None
    }
    open_ = [i for i, column in enumerate(found) if column.dtype == pl.Float64 and not verbatim(column.name)]
    chosen = decimal
    if decimal is None and (candidates or likely == "," or separator == ";"):
        chosen = judge.decimal(candidates, [texts[i] for i in open_], separator, likely)
    numbers = Numbers(found, chosen)
    for i, candidate in candidates.items():
        numbers.columns[i] = judge.read(texts[i], candidate.text, chosen or ".")
        numbers.formats[texts[i].name] = _described(texts[i], candidate, chosen or ".")
    if chosen == ",":
        for i in open_:  # "1.234" is 1234 here
            if texts[i].str.contains(".", literal=True).any():
                numbers.columns[i] = judge.read(texts[i], texts[i], ",")
                numbers.formats[texts[i].name] = "points between thousands"
    return numbers


def mostly_numbers(text: pl.Series) -> bool:
    """Whether nearly all values that are not null are numbers, however written."""
    known = text.drop_nulls()
    return len(known) > 0 and known.str.contains(_NUMBER).mean() >= MOSTLY  # type: ignore[operator,return-value]


def _plain(text: pl.Series) -> pl.Series:
    """A column as integers or floats where all its values are plain numbers, not codes."""
    if text.null_count() == len(text):
        return text
    head = text.drop_nulls().head(SAMPLE)
    for dtype in (pl.Int64, pl.Float64):
        if head.cast(dtype, strict=False).null_count():
            continue  # so is the whole column
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            codes = text.str.contains(r"^[+-]?0\d").any()
            return text if codes or (dtype == pl.Float64 and _loses_digits(text, numbers)) else numbers
    return text


def _loses_digits(text: pl.Series, numbers: pl.Series) -> bool:
    """Whether a column has whole numbers, likely ids, with more digits than a float."""
    large = text.filter((numbers.abs() >= 1e15).fill_null(False))
    return len(large) > 0 and bool(large.str.contains(r"^[+-]?\d{16,}$").any())


class _Judge:
    """Reads the columns of a file; its errors name the file and the row."""

    def __init__(self, source: str, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows

    def candidate(self, text: pl.Series) -> _Candidate | None:
        """A column of which (nearly) all values are numbers and not all of them plain; None for other text."""
        known = text.drop_nulls()
        sample = known.gather_every(max(len(known) // SAMPLE, 1))
        if not len(known) or sample.str.contains(_NUMBER).mean() < MOSTLY / 2:  # type: ignore[operator]
            return None
        if not mostly_numbers(text):
            return None
        like = text.str.contains(_NUMBER)
        if (known.str.contains(_PLAIN) | ~known.str.contains(_NUMBER)).all() or known.str.contains(_CODES).any():
            return None  # mistakes among plain numbers are refused where it is known that the column is a feature
        self._refuse(text, ~like, "is not a number, unlike most of the column")
        units = text.str.replace_all(r"[^$€£¥%]", "")
        unit = str(units.drop_nulls()[0])
        self._refuse(text, units != unit, f"is not written like {known[0]!r}")
        bare = text.str.replace_all(rf"\s|{_UNITS}|{_GAP}", "")
        values = bare.drop_nulls()
        reads = {mark: values.str.contains(_READINGS[mark]) for mark in ".,"}
        sure = {".": reads["."] & ~reads[","], ",": reads[","] & ~reads["."]}
        sure[","] &= values.str.contains(",", literal=True)  # 1.234.567 may be the number of a version
        evidence = {mark for mark in ".," if sure[mark].any()}
        either = values.filter(values.str.contains(_EITHER_COMMA))
        if len(either) and not evidence and (unit in "$£" and unit):
            evidence = {"."}
        return _Candidate(bare, unit, evidence, str(either[0]) if len(either) else None)

    def decimal(
        self, candidates: dict[int, _Candidate], floats: list[pl.Series], separator: str, likely: str | None
    ) -> str | None:
        """The decimal character of the file; None where no column tells and all can be read with a point."""
        says = {mark: [c.text for c in candidates.values() if mark in c.evidence] for mark in ".,"}
        for text in floats:
            sure = text.str.contains(".", literal=True) & ~text.str.contains(_EITHER_POINT)
            if sure.any():
                says["."].append(text)
        for c in candidates.values():
            if len(c.evidence) == 2:
                self._mixed(c.text, c.text)
        if says["."] and says[","]:
            self._mixed(says[","][0], says["."][0])
        if says[","] and separator == "," and likely != ",":
            column = says[","][0]
            found = f"{self._surely(column, ',')!r} in column {column.name!r} can be a number with a decimal comma or a list"
            raise InputError(f"{self.source}: {found}; say data.decimal=, or name the column in categorical or drop")
        for mark in ".,":
            if says[mark]:
                return mark
        if likely is not None:
            return likely
        for c in candidates.values():
            if c.either is not None and not self._thousands(c, separator):
                self._unclear(c.text.name, c.either, ",")
        if separator == ";":
            for text in (*floats, *(c.text for c in candidates.values())):
                if text.str.contains(_EITHER_POINT).any():
                    self._unclear(text.name, str(text.filter(text.str.contains(_EITHER_POINT))[0]), ".")
        return None

    @staticmethod
    def _thousands(column: _Candidate, separator: str) -> bool:
        """Whether commas are between thousands because whole numbers below a thousand, and none above, are without."""
        plain = column.text.drop_nulls()
        plain = plain.filter(~plain.str.contains(",", literal=True))
        return separator == "," and len(plain) > 0 and bool(plain.str.contains(_SMALL).all())

    def read(self, text: pl.Series, bare: pl.Series, decimal: str) -> pl.Series:
        """The numbers of a column in one reading."""
        word = {".": "point", ",": "comma"}[decimal]
        wrong = ~bare.str.contains(_READINGS[decimal])
        group = _OTHER[decimal]
        grouped = bare.str.contains(group, literal=True)
        if grouped.any():  # among 1,234 a number 1234 is written in another way
            wrong = wrong | bare.str.contains(r"^[+-]?\d{4,}")
        self._refuse(text, wrong, f"is not a number with a decimal {word} (data.decimal) like the others")
        plain = bare.str.replace_all(group, "", literal=True).str.replace(decimal, ".", literal=True)
        whole = plain.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == text.null_count() else plain.cast(pl.Float64)

    def _refuse(self, text: pl.Series, wrong: pl.Series, why: str) -> None:
        if wrong.any():
            row = int(wrong.arg_true()[0])
            where = place(int(self.rows[row]), self.source, text.name)
            raise InputError(f"{where}: {text[row]!r} {why}; columns of text are named in categorical or drop")

    def _mixed(self, comma: pl.Series, point: pl.Series) -> NoReturn:
        one = f"column {comma.name!r} has a decimal comma ({_Judge._surely(comma, ',')!r})"
        other = f"column {point.name!r} a decimal point ({_Judge._surely(point, '.')!r})"
        advice = "say which with data.decimal, and name the other column in categorical or drop"
        raise InputError(f"{self.source}: {one}, {other}; {advice}")

    @staticmethod
    def _surely(text: pl.Series, mark: str) -> str:
        """The first value with this decimal character and no other."""
        values = text.drop_nulls()
        sure = ~values.str.contains(_READINGS[_OTHER[mark]]) & values.str.contains(_READINGS[mark])
        return str(values.filter(sure)[0])

    def _unclear(self, name: str, value: str, mark: str) -> NoReturn:
        one, other = value.replace(mark, ""), value.replace(mark, ".")
        found = f"{value!r} in column {name!r} can be {one} or {other}"
        raise InputError(f"{self.source}: {found}; say which with data.decimal={mark} (for {other}) or {_OTHER[mark]}")


def _described(text: pl.Series, candidate: _Candidate, decimal: str) -> str:
    """For the notes: an example and its number."""
    parts = [f"with {candidate.unit} (left out)"] if candidate.unit else []
    if candidate.text.str.contains(_OTHER[decimal], literal=True).any():
        parts.append(f"{'commas' if decimal == '.' else 'points'} between thousands")
    if decimal == "," and candidate.text.str.contains(",", literal=True).any():
        parts.append("decimal comma")
    return f"{text.drop_nulls()[0]}: " + (", ".join(parts) or "gaps between thousands")
