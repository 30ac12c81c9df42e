"""From sample ids to rows of a table of predictions."""

import torch
from torch import Tensor

from tgeokd.data.batch import Batch
from tgeokd.utils.errors import InputError

DENSE = 4  # ids are found with a table if their range is below this many times their number, otherwise by binary search


class IdIndex:
    """The row of each sample id, of distinct integers in any order, shape (M,), M >= 1.

    Attributes:
        ascending: the ids in ascending order, int64, shape (M,).
        order: the row of each of these.

    Raises:
        InputError: for another shape or type, no ids, or an id that occurs twice; ``what`` is the subject.
    """

    def __init__(self, ids: Tensor, what: str = "the teacher's predictions") -> None:
        _check_integers(ids)
        if not len(ids):
            raise InputError(f"{what}: no samples")
        self.ids, self.what = ids.detach().to("cpu", torch.int64), what
        self.ascending, self.order = self.ids.sort()
        repeated = self.ascending[1:][self.ascending[1:] == self.ascending[:-1]]
        if len(repeated):
            twice = int(repeated[0])
            rows = (self.ids == twice).nonzero().flatten().tolist()
            raise InputError(f"{what}: sample {twice} occurs more than once, in rows {rows[0]} and {rows[1]}")
        self.first, self.last = int(self.ascending[0]), int(self.ascending[-1])
        self._table: Tensor | None = None
        if self.last - self.first < DENSE * len(ids):
            self._table = torch.full((self.last - self.first + 1,), -1, dtype=torch.int64)
            self._table[self.ascending - self.first] = self.order
            self._full = len(self._table) == len(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of samples: int64, shape (N,), on the CPU; an :class:`InputError` for an id that is not in the table.

        Args:
            ids: integers, shape (N,), in any order, repeats allowed. Ids on an accelerator are copied to the CPU first.
        """
        _check_integers(ids)
        wanted = ids.to("cpu", torch.int64)
        rows = self._find(wanted)
        if rows is None:
            wrong = int(wanted[~torch.isin(wanted, self.ids)][0])
            raise InputError(
                f"{self.what}: no sample {wrong}; there are {len(self)} samples with ids {self.first} to {self.last}"
            )
        return rows

    def _find(self, wanted: Tensor) -> Tensor | None:
        """Rows of samples; None where an id is not in the table."""
        if self._table is None:
            places = torch.searchsorted(self.ascending, wanted).clamp_(max=len(self) - 1)
            return self.order[places] if torch.equal(self.ascending[places], wanted) else None
        try:
            rows = self._table.index_select(0, wanted - self.first)
        except IndexError:  # before the first or after the last
            return None
        return rows if self._full or not len(rows) or int(rows.min()) >= 0 else None


def ids_of(batch: Batch, what: str, hint: str = "") -> Tensor:
    """The sample ids of a batch; an :class:`InputError` that ``what`` needs them, with a hint, where it has none."""
    if batch.ids is None:
        example = "for example over ArrayDataset(inputs, target, ids)"
        raise InputError(f"{what} by sample id: loaders must yield (inputs, target, ids), {example}{hint}")
    return batch.ids


def first_rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows where each distinct id occurs first, ascending, (M,), and for each row the first row of its id, (N,)."""
    known, place = ids.unique(return_inverse=True)
    first = torch.full((len(known),), len(ids)).scatter_reduce(0, place, torch.arange(len(ids)), "amin")
    return first.sort().values, first[place]


def check_repeats(ids: Tensor, logits: Tensor, first: Tensor) -> None:
    """Raise :class:`InputError` unless logits (N, C) of samples that were queried twice differ by rounding only.

    They may differ by 1 % of the largest logit, and by 0.01.
    """
    apart = (logits - first).abs().amax(dim=-1)
    wrong = (apart > 1e-2 * first.abs().amax(dim=-1).clamp(min=1)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"the teacher gives different logits for two samples with the id {int(ids[row])} (by {float(apart[row]):.3g}); "
            "each sample needs its own id, and the loaders must not augment"
        )


def _check_integers(ids: Tensor) -> None:
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"ids must be integers of shape (N,), not {ids.dtype} of shape {tuple(ids.shape)}")
