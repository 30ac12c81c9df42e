"""Counts of the values of a column in bounded memory."""

from __future__ import annotations

import polars as pl

from tgeokd.utils.errors import InputError

__all__ = ["ValueCounts"]

PENDING = 1 << 16


class ValueCounts:
    """Counts of the values of one column, exact up to ``max_tracked`` distinct values.

    Beyond that the rarest are dropped until at most half are left: lossy counting (Manku and Motwani, "Approximate Frequency
    Counts over Data Streams", VLDB 2002) with a bound on the entries instead of the error. An entry stores how often its value
    may have occurred before the entry was created. With ``e`` = :attr:`undercount`, ``true - e <= count <= true`` holds for
    every value (``count`` is 0 for a value that is not tracked). So with a minimum count ``m`` no value below ``m`` gets a
    code, and every value with at least ``m + e`` gets one.

    Args:
        max_tracked: largest number of entries between two blocks; while adding, twice as many plus those of a block.

    Attributes:
        undercount: ``e``; 0 while the counts are exact.
        held: the largest number of entries so far.
    """

    def __init__(self, max_tracked: int) -> None:
        if max_tracked < 2:
            raise InputError(f"max_tracked must be >= 2, not {max_tracked}")
        self.max_tracked = max_tracked
        self.undercount = 0
        self.held = 0
        self._table = _table(pl.Series("value", [], dtype=pl.String), 0)
        self._pending: list[pl.DataFrame] = []
        self._pending_size = 0

    def add(self, values: pl.Series) -> None:
        """Count the values of a block of rows, except nulls."""
        block = _table(values.drop_nulls(), self.undercount)
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


def _table(values: pl.Series, before: int) -> pl.DataFrame:
    counted = values.rename("value").value_counts(name="count")
    return counted.select("value", pl.col("count").cast(pl.Int64), pl.lit(before, pl.Int64).alias("before"))
