"""Integer codes of raw columns, fitted on training rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.base import InputSpec
from tgeokd.data.tables import ENCODERS
from tgeokd.data.tables.encoder import FIRST, MISSING, UNKNOWN, column_of, prefix, refuse_wrong
from tgeokd.data.tasks.criteo.reader import CATEGORIES, COLUMNS, INTEGERS
from tgeokd.utils.errors import InputError

KIND = "criteo"
PENDING = 1 << 16  # values that are merged at a time, at least


class ValueCounts:
    """Counts of the values of one column, exact up to ``max_tracked`` distinct values.

    Beyond that the rarest are dropped until at most half are left: lossy counting (Manku and Motwani, "Approximate Frequency
    Counts over Data Streams", VLDB 2002) with a bound on the entries instead of the error. An entry stores how often its value
    may have occurred before the entry was created. With ``e`` = :attr:`undercount`, ``true - e <= count <= true`` holds for
    every value (``count`` is 0 for a value that is not tracked). So with a minimum count ``m`` no value below ``m`` gets a
    code, and every value with at least ``m + e`` gets one.

    Between two blocks there are at most ``max_tracked`` entries; while adding, twice as many plus those of a block.

    Attributes:
        undercount: ``e``; 0 while the counts are exact.
        held: the largest number of entries so far.
    """

    def __init__(self, max_tracked: int) -> None:
        if max_tracked < 2:
            raise InputError(f"max_tracked must be >= 2, not {max_tracked}")
        self.max_tracked = max_tracked
        self.undercount = self.held = 0
        self._table = _counted(pl.Series("value", [], dtype=pl.String), 0)
        self._pending: list[pl.DataFrame] = []
        self._pending_size = 0

    def add(self, values: pl.Series) -> None:
        """Count the values of a block of rows, except nulls."""
        block = _counted(values.drop_nulls(), self.undercount)
        self._pending.append(block)
        self._pending_size += len(block)
        self.held = max(self.held, len(self._table) + self._pending_size)
        if self._pending_size > max(len(self._table), min(PENDING, self.max_tracked)):  # amortised O(1) per value
            self._merge()

    def counts(self) -> pl.DataFrame:
        """Columns ``value`` and ``count``, by decreasing count, ties by value."""
        self._merge()
        return self._table.select("value", "count").sort("count", "value", descending=[True, False])

    def _merge(self) -> None:
        everything = pl.concat([self._table, *self._pending])
        table = everything.group_by("value").agg(pl.col("count").sum(), pl.col("before").min())
        self._pending, self._pending_size = [], 0
        if len(table) > self.max_tracked:
            at_most = table["count"] + table["before"]
            threshold = int(at_most.sort(descending=True)[self.max_tracked // 2])
            table = table.filter(at_most > threshold)
            self.undercount = max(self.undercount, threshold)
        self._table = table


def _counted(values: pl.Series, before: int) -> pl.DataFrame:
    counts = values.rename("value").value_counts(name="count")
    return counts.select("value", pl.col("count").cast(pl.Int64), pl.lit(before, pl.Int64).alias("before"))


@ENCODERS.register(KIND)
@dataclass(frozen=True)
class CriteoEncoder:
    """The codes of all 39 columns.

    An integer ``v`` up to 2 is a category; larger ones fall into buckets ``floor(log(v)^2)``, which are separate categories (1
    and the bucket 1 of 3 and 4 differ). This is the rule of the winners of the 2014 challenge (Juan, Zhuang, Chin, "3 Idiots'
    Approach for Display Advertising Challenge"). Code 0 is missing, 1 a value below the minimum count or never seen; the other
    values follow by decreasing count, ties by value.

    Attributes:
        values: for each column, the values with a code of their own; ``values[name][0]`` has code 2.
    """

    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(
        cls, frames: Iterable[pl.DataFrame], *, min_count: int, max_tracked: int
    ) -> tuple[CriteoEncoder, dict[str, int]]:
        """Fit the codes to a stream of training rows, each frame with :data:`~tgeokd.data.tasks.criteo.reader.COLUMNS`.

        A value must occur on ``min_count`` rows to get a code of its own. For ``max_tracked`` see :class:`ValueCounts`.

        Returns:
            The encoder, and for each column with inexact counts the largest possible error.
        """
        if min_count < 1:
            raise InputError(f"min_count must be >= 1, not {min_count}")
        counted = {name: ValueCounts(max_tracked) for name in COLUMNS}
        for frame in frames:
            for column in frame.select(*_BUCKETS, *CATEGORIES):
                counted[column.name].add(column)
        frequent = pl.col("count") >= min_count
        values = {name: tuple(counts.counts().filter(frequent)["value"]) for name, counts in counted.items()}
        return cls(values), {name: counts.undercount for name, counts in counted.items() if counts.undercount}

    @property
    def inputs(self) -> InputSpec:
        """No numeric columns, and the number of codes of each of the 39 categorical ones."""
        return InputSpec("table", (0,), tuple(len(self.values[name]) + FIRST for name in COLUMNS))

    def codes(self, frame: pl.DataFrame) -> NDArray[np.int32]:
        """Codes of rows from the reader, shape (N, 39)."""
        coded = frame.select(*_BUCKETS, *CATEGORIES).select(self._coding)
        return coded.to_numpy() if len(frame) else np.empty((0, len(COLUMNS)), dtype=np.int32)

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """An empty numeric tensor, shape (N, 0), float32, and codes, shape (N, 39), int64.

        Integer columns may be text; categories must be text, because numbers have lost leading zeros.
        """
        codes = torch.from_numpy(self.codes(_as_read(frame, source)).astype(np.int64))
        return torch.empty(len(frame), 0), codes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the input of :meth:`from_dict`."""
        return {"kind": KIND, "values": {name: list(values) for name, values in self.values.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CriteoEncoder:
        """The encoder from the output of :meth:`to_dict`."""
        values = content.get("values") if isinstance(content, Mapping) and content.get("kind") == KIND else None
        if not isinstance(values, Mapping) or set(values) != set(COLUMNS):
            raise InputError(f"a stored encoder of click rows must have kind {KIND!r} and the values of 39 columns")
        for name, known in values.items():
            distinct = (
                isinstance(known, list) and all(isinstance(v, str) for v in known) and len(set(known)) == len(known)
            )
            if not distinct:
                raise InputError(f"stored encoder: the values of column {name!r} must be a list of distinct strings")
        return cls({name: tuple(values[name]) for name in COLUMNS})

    @cached_property
    def _coding(self) -> list[pl.Expr]:
        """Expressions with the lookup tables, which are expensive to build."""
        return [_code(name, self.values[name]) for name in COLUMNS]


def _code(name: str, values: Sequence[str]) -> pl.Expr:
    position = pl.col(name).cast(pl.Enum(pl.Series(values, dtype=pl.String)), strict=False).to_physical()
    code = (position.cast(pl.Int32) + FIRST).fill_null(UNKNOWN)
    return pl.when(pl.col(name).is_null()).then(pl.lit(MISSING, pl.Int32)).otherwise(code).alias(name)


def _bucket(name: str) -> pl.Expr:
    """An integer column as categories: ``-1``, ``0``, ``2``, and ``b7`` for the bucket 7."""
    value = pl.col(name).cast(pl.Float64)
    large = pl.format("b{}", value.log().pow(2).floor().cast(pl.Int64, strict=False))
    return pl.when(value > 2).then(large).otherwise(value.cast(pl.Int64, strict=False).cast(pl.String)).alias(name)


_BUCKETS = [_bucket(name) for name in INTEGERS]


def _as_read(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """A user's frame in the form of the reader."""
    columns: list[pl.Series] = []
    for name in COLUMNS:
        column = column_of(frame, name, source)
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            column = column.cast(pl.String).replace("", None)
        if name in INTEGERS:
            numbers = column.cast(pl.Float64, strict=False)
            wrong = column.is_not_null() & ~numbers.is_finite().fill_null(False)
            if column.dtype.is_float():
                wrong &= ~column.is_nan().fill_null(False)  # a missing value in some libraries
            refuse_wrong(wrong, column, source)
            columns.append(numbers.fill_nan(None))
        elif column.dtype in (pl.String, pl.Null):
            columns.append(column.cast(pl.String))
        else:
            given = f"column {name} has values of type {column.dtype}"
            raise InputError(f"{prefix(source)}{given}; read categories as text")
    return pl.DataFrame(columns)
