"""From raw columns to integer codes, fitted on training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.base import InputSpec
from tgeokd.data.tables.encoder import FIRST, MISSING, UNKNOWN
from tgeokd.data.tasks.criteo.counting import ValueCounts
from tgeokd.data.tasks.criteo.reader import CATEGORIES, COLUMNS, INTEGERS
from tgeokd.utils.errors import InputError, unknown_name

__all__ = ["CriteoEncoder"]

KIND = "criteo"


@dataclass(frozen=True)
class CriteoEncoder:
    """The codes of all 39 columns.

    An integer ``v`` becomes a category: itself up to 2, and ``floor(log(v)^2)`` in a bucket of its own kind above, so that 1
    and the bucket 1 of 3 and 4 stay apart. This is the rule of the winners of the 2014 challenge (Juan, Zhuang, Chin, "3
    Idiots' Approach for Display Advertising Challenge"). Code 0 stands for missing, 1 for a value that was rarer than the
    minimum count or never seen, then the values follow by decreasing count, equal ones by value.

    Attributes:
        values: of each column, the values with a code of their own; ``values[name][0]`` has code 2.
    """

    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(
        cls, frames: Iterable[pl.DataFrame], *, min_count: int, max_tracked: int
    ) -> tuple[CriteoEncoder, dict[str, int]]:
        """Learn the codes from a stream of training rows.

        Args:
            frames: each with :data:`~tgeokd.data.tasks.criteo.reader.COLUMNS`, integers as numbers and categories as text.
            min_count: rows a value needs for a code of its own.
            max_tracked: see :class:`~tgeokd.data.tasks.criteo.counting.ValueCounts`.

        Returns:
            The encoder, and by how much counts may be too low, for each column whose counts are not exact.

        Raises:
            InputError: for an impossible ``min_count`` or ``max_tracked``.
        """
        if min_count < 1:
            raise InputError(f"min_count must be >= 1, not {min_count}")
        counted = {name: ValueCounts(max_tracked) for name in COLUMNS}
        for frame in frames:
            for column in frame.select(*_BUCKETS, *CATEGORIES):
                counted[column.name].add(column)
        values = {}
        for name, counts in counted.items():
            values[name] = tuple(counts.counts().filter(pl.col("count") >= min_count)["value"])
        return cls(values), {name: counts.undercount for name, counts in counted.items() if counts.undercount}

    @property
    def inputs(self) -> InputSpec:
        """No numeric column; the number of codes of each of the 39 categorical ones."""
        return InputSpec("table", (0,), tuple(len(self.values[name]) + FIRST for name in COLUMNS))

    def codes(self, frame: pl.DataFrame) -> NDArray[np.int32]:
        """Codes of rows as the reader gives them, shape (N, 39)."""
        coded = frame.select(*_BUCKETS, *CATEGORIES).select(self._coding)
        return coded.to_numpy() if len(frame) else np.empty((0, len(COLUMNS)), dtype=np.int32)

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """The model's inputs.

        Args:
            frame: any rows with the 39 columns; others are ignored. Integer columns may be text, categories must be: a number
                has lost its leading zeros.
            source: where the rows come from, for messages.

        Returns:
            Nothing numeric, shape (N, 0), float32; codes, shape (N, 39), int64.

        Raises:
            InputError: for a missing column, an integer column with something else than numbers, or categories as numbers.
        """
        codes = torch.from_numpy(self.codes(_as_read(frame, source)).astype(np.int64))
        return torch.empty(len(frame), 0), codes

    def unseen(self, frame: pl.DataFrame) -> dict[str, int]:
        """Rows whose value has no code of its own, for each column that has such rows."""
        return _tally(self.codes(_as_read(frame, "")) == UNKNOWN)

    def missing(self, frame: pl.DataFrame) -> dict[str, int]:
        """Rows without a value, for each column that has such rows."""
        return _tally(self.codes(_as_read(frame, "")) == MISSING)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which :meth:`from_dict` makes the same encoder."""
        return {"kind": KIND, "values": {name: list(values) for name, values in self.values.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CriteoEncoder:
        """The encoder :meth:`to_dict` wrote.

        Raises:
            InputError: for anything else.
        """
        values = content.get("values") if isinstance(content, Mapping) and content.get("kind") == KIND else None
        if not isinstance(values, Mapping) or set(values) != set(COLUMNS):
            raise InputError(f"not a saved encoder of click rows: expected kind {KIND!r} and the values of 39 columns")
        for name, known in values.items():
            if not (
                isinstance(known, list) and all(isinstance(v, str) for v in known) and len(set(known)) == len(known)
            ):
                raise InputError(f"saved encoder: the values of column {name!r} must be a list of different texts")
        return cls({name: tuple(values[name]) for name in COLUMNS})

    @cached_property
    def _coding(self) -> list[pl.Expr]:
        """Expressions that hold the lookup tables, which are costly to build."""
        return [self._code(name) for name in COLUMNS]

    def _code(self, name: str) -> pl.Expr:
        position = pl.col(name).cast(pl.Enum(pl.Series(self.values[name], dtype=pl.String)), strict=False).to_physical()
        code = position.cast(pl.Int32) + FIRST
        missing = pl.col(name).is_null()
        return pl.when(missing).then(pl.lit(MISSING, pl.Int32)).otherwise(code.fill_null(UNKNOWN)).alias(name)


def _bucket(name: str) -> pl.Expr:
    """An integer column as categories: ``-1``, ``0``, ``2``, and ``b7`` for the bucket 7."""
    value = pl.col(name).cast(pl.Float64)
    large = pl.format("b{}", value.log().pow(2).floor().cast(pl.Int64, strict=False))
    return pl.when(value > 2).then(large).otherwise(value.cast(pl.Int64, strict=False).cast(pl.String)).alias(name)


_BUCKETS = [_bucket(name) for name in INTEGERS]


def _as_read(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """A user's frame as the reader would have given it."""
    of = f"{source}: " if source else ""
    columns: list[pl.Series] = []
    for name in COLUMNS:
        if name not in frame.columns:
            raise InputError(f"{of}{unknown_name('column', name, frame.columns)}")
        column = frame[name]
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            column = column.cast(pl.String).replace("", None)
        if name in INTEGERS:
            numbers = column.cast(pl.Float64, strict=False)
            wrong = column.is_not_null() & ~numbers.is_finite().fill_null(False)
            if column.dtype.is_float():
                wrong &= ~column.is_nan().fill_null(False)  # how some libraries write a missing value
            if wrong.any():
                row = int(wrong.arg_true()[0])
                raise InputError(f"{of}row {row} (the first is 0), column {name}: {column[row]!r} is not a number")
            columns.append(numbers.fill_nan(None))
        elif column.dtype in (pl.String, pl.Null):
            columns.append(column.cast(pl.String))
        else:
            raise InputError(f"{of}column {name} has values of type {column.dtype}; read categories as text")
    return pl.DataFrame(columns)


def _tally(mask: NDArray[np.bool_]) -> dict[str, int]:
    return {name: int(n) for name, n in zip(COLUMNS, mask.sum(axis=0), strict=True) if n}
