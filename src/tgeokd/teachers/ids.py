"""From the ids of samples to rows of a table of predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from tgeokd.utils.errors import InputError

__all__ = ["IdIndex", "first_rows"]

DENSE = 4
"""Ids that fill at least one in so many places between the first and the last are found by a table, others by search."""


class IdIndex:
    """Which row holds which sample.

    Args:
        ids: of the rows, whole numbers, each once, in any order, shape (M,), at least one.
        what: what the table is called in messages.

    Attributes:
        ascending: the ids in ascending order, int64, shape (M,).
        order: the row of each of these.

    Raises:
        InputError: for another shape or type, no id at all, or one that occurs twice.
    """

    def __init__(self, ids: Tensor, what: str = "the teacher's predictions") -> None:
        if not _whole_numbers(ids):
            raise InputError(f"ids must be whole numbers of shape (M,), not {ids.dtype} of shape {tuple(ids.shape)}")
        if not len(ids):
            raise InputError(f"{what} hold no samples")
        self.ids, self.what = ids.detach().to("cpu", torch.int64), what
        self.ascending, self.order = self.ids.sort()
        repeated = (self.ascending[1:] == self.ascending[:-1]).nonzero()
        if len(repeated):
            twice = int(self.ascending[int(repeated[0])])
            rows = (self.ids == twice).nonzero().flatten().tolist()
            raise InputError(f"{what} hold sample {twice} more than once: rows {rows[0]} and {rows[1]}")
        self.first, self.last = int(self.ascending[0]), int(self.ascending[-1])
        self._table: Tensor | None = None
        if self.last - self.first < DENSE * len(ids):
            self._table = torch.full((self.last - self.first + 1,), -1, dtype=torch.int64)
            self._table[self.ascending - self.first] = self.order
            self._full = len(self._table) == len(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of samples.

        Args:
            ids: whole numbers, shape (N,), in any order, repeats allowed. Those on an accelerator are read back, which waits.

        Returns:
            int64, shape (N,), on the CPU.

        Raises:
            InputError: for an id that the table does not hold.
        """
        if not _whole_numbers(ids):
            raise InputError(f"ids must be whole numbers of shape (N,), not {ids.dtype} of shape {tuple(ids.shape)}")
        wanted = ids.to("cpu", torch.int64)
        rows = self._looked_up(wanted) if self._table is not None else self._searched(wanted)
        if rows is None:
            wrong = int(wanted[~torch.isin(wanted, self.ids)][0])
            raise InputError(
                f"{self.what} hold no sample {wrong} (they hold {len(self)} samples, ids {self.first} to {self.last})"
            )
        return rows

    def _looked_up(self, wanted: Tensor) -> Tensor | None:
        assert self._table is not None
        try:
            rows = self._table.index_select(0, wanted - self.first)
        except IndexError:  # before the first or after the last
            return None
        return rows if self._full or not len(rows) or int(rows.min()) >= 0 else None

    def _searched(self, wanted: Tensor) -> Tensor | None:
        places = torch.searchsorted(self.ascending, wanted).clamp_(max=len(self) - 1)
        return self.order[places] if torch.equal(self.ascending[places], wanted) else None


def first_rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each different id stands first, (M,), and for each of the N rows which of these M it is, (N,); int64."""
    known, place = ids.unique(return_inverse=True)
    n = len(ids)
    return torch.full((len(known),), n).scatter_reduce(0, place, torch.arange(n), "amin"), place


def _whole_numbers(ids: Tensor) -> bool:
    return ids.ndim == 1 and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
