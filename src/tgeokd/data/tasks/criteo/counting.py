"""How often each value of a column occurs, in bounded memory."""

from __future__ import annotations

import polars as pl

from tgeokd.utils.errors import InputError

__all__ = ["ValueCounts"]

PENDING = 1 << 16


class ValueCounts:
    """Counts of the values of one column, exact until there are more than ``max_tracked`` of them.

    Then the rarest are dropped until at most half are left: lossy counting (Manku and Motwani, "Approximate Frequency Counts
    over Data Streams", VLDB 2002) with a cap on the entries instead of on the error. An entry knows how often its value may
    have been seen before the entry was made. With ``e`` = :attr:`undercount`, for every value ``true - e <= count <= true``
    holds (``count`` is 0 for a value that is not tracked). So with a minimum count ``m`` no value below ``m`` gets a code, and
    every value with at least ``m + e`` does.

    Args:
        max_tracked: distinct values held between two blocks, at most; while adding, twice as many and those of a block.

    Attributes:
        undercount: ``e``; 0 while the counts are exact.
        held: the largest number of entries held so far.
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
        """Count the values of a block of rows; nulls are left out."""
        block = _table(values.drop_nulls(), self.undercount)
        self._pending.append(block)
        self._pending_size += len(block)
        self.held = max(self.held, len(self._table) + self._pending_size)
        if self._pending_size > max(len(self._table), min(PENDING, self.max_tracked)):  # so merging costs O(1) a value
            self._merge()

    def counts(self) -> pl.DataFrame:
        """Columns ``value`` and ``count``, by decreasing count, equal ones by value."""
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
