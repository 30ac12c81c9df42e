"""Whether the first line of a table has names or is a row."""

from __future__ import annotations

import itertools

import polars as pl

from tgeokd.utils.errors import InputError

YEARS = range(1900, 2101)
MANY = 10  # increasing numbers that are names and not, by chance, values


def refuse_data(frame: pl.DataFrame, source: str) -> None:
    """Raise an error for a table whose names look like one of its rows.

    That is so where every column of numbers has a number as its name, and every column of text with repeated values has one of
    these values as its name. Whole numbers in a sequence, years, and many increasing numbers are names (pixels, wavelengths).
    """
    numeric = [column for column in frame if column.dtype.is_numeric()]
    names = [_number(column.name) for column in numeric]
    numbers = [number for number in names if number is not None]
    if len(numbers) < sum(column.name != "" for column in numeric) or _plausible(numbers):
        return
    found = len(numbers)
    for column in frame:
        if column.dtype == pl.String and column.name and column.n_unique() <= len(column) / 2:
            if column.name not in column:
                return
            found += 1
    if found:
        line = ", ".join(frame.columns)
        advice = "add a line with the names of the columns, or rename them"
        raise InputError(f"the first line of {source} looks like a row and not like names ({line:.80}); {advice}")


def _number(name: str) -> float | None:
    try:
        return float(name.replace("_", "x"))  # 1_000 is a number for Python only
    except ValueError:
        return None


def _plausible(numbers: list[float]) -> bool:
    """Whether numbers are names: a sequence, years, or many and increasing."""
    if not numbers:
        return False
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    whole = all(number == int(number) for number in numbers if abs(number) < 1e15)
    in_order = whole and set(steps) <= {1.0} and (len(numbers) > 1 or numbers[0] in (0, 1))
    years = whole and all(number in YEARS for number in numbers)
    return in_order or years or (len(numbers) >= MANY and all(step > 0 for step in steps))
