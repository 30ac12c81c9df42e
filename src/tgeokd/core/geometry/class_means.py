"""The teacher's mean prediction for each class: a full table, or for very many classes the largest entries of each row."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from tgeokd.core.validation import check_count, check_logits, check_probs, check_target, listed_classes
from tgeokd.utils.errors import InputError

DENSE_CLASSES = 8192  # a full float32 table of more classes would take over 256 MiB
KEPT = 32  # entries a class beside its own where the table is not full


class ClassMeans:
    """The teacher's mean prediction for each class, gathered batch by batch.

    For up to :data:`DENSE_CLASSES` classes the table is full. For more it is sparse: of each class the probability of the
    class itself, which is exact, and the ``kept`` largest others. Of the others twice as many are carried along for each
    class, and what falls out on the way counts as the rest of the row. So a stored probability is never above the true mean
    (up to rounding), and exact where the samples of a class together have at most ``2 * kept`` classes with any probability.
    Memory is in proportion to ``num_classes * kept``, whatever the number of samples.

    Args:
        num_classes: C.
        kept: entries a class beside its own; by default all of them up to :data:`DENSE_CLASSES` classes, :data:`KEPT` above.

    Attributes:
        counts: samples seen of each class, shape (C,).

    Example:
        >>> means = ClassMeans(num_classes=10)
        >>> for inputs, target in loader:                                        # doctest: +SKIP
        ...     means.update(teacher(inputs).softmax(dim=-1), target)
        >>> table = means.compute()                                              # shape (10, 10)  # doctest: +SKIP
    """

    def __init__(self, num_classes: int, kept: int | None = None) -> None:
        check_count(1, num_classes=num_classes)
        if kept is None and num_classes > DENSE_CLASSES:
            kept = KEPT
        if kept is not None and not 1 <= kept < num_classes:
            raise InputError(f"kept must be from 1 to {num_classes - 1} for {num_classes} classes, not {kept}")
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self._rows = _FullRows(num_classes) if kept is None else _LargestEntries(num_classes, kept)
        self._dtype = torch.get_default_dtype()

    def update(self, teacher_probs: Tensor, target: Tensor) -> None:
        """Add a batch: softmax of the teacher's logits at temperature 1, shape (N, C), and class indices, shape (N,)."""
        check_logits(teacher_probs=teacher_probs)
        if teacher_probs.shape[-1] != self.num_classes:
            raise InputError(f"teacher_probs has {teacher_probs.shape[-1]} classes, expected {self.num_classes}")
        check_probs(teacher_probs=teacher_probs)
        check_target(target, teacher_probs)
        self.counts = self.counts.to(teacher_probs.device)
        self._dtype = teacher_probs.dtype
        self._rows.add(teacher_probs, target)
        self.counts += torch.bincount(target, minlength=self.num_classes)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Sum over processes, each of which has seen other samples; an InputError where the table is sparse."""
        self.counts = all_reduce(self.counts)
        self._rows.reduce(all_reduce)

    def compute(self) -> Tensor:
        """The means, shape (C, C): row ``c`` for class ``c``, with a warning the uniform distribution where it has no sample.

        Returns:
            A full table, or a sparse COO tensor with 1 + ``kept`` entries in each row, among them the class itself. What a row
            lacks to 1 is spread over the classes without an entry in an unknown way.
        """
        empty = listed_classes(self.counts == 0)
        if empty:
            warnings.warn(f"no training sample of class {empty}: its teacher mean is taken to be uniform", stacklevel=2)
        return self._rows.means(self.counts, self._dtype)


def class_means(teacher_probs: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Mean of the teacher's predictions over the training samples of each class.

    Use training samples only: validation or test predictions in this table would leak into the fusion ratio.
    :class:`ClassMeans` does the same batch by batch; see its :meth:`~ClassMeans.update` for the arguments.

    Returns:
        Shape (C, C); sparse for very many classes: see :meth:`ClassMeans.compute`.
    """
    means = ClassMeans(num_classes)
    means.update(teacher_probs, target)
    return means.compute()


class _FullRows:
    """Sums of whole rows."""

    def __init__(self, num_classes: int) -> None:
        # float64 sums: a class mean must not depend on how the samples were cut into batches.
        self._sums = torch.zeros(num_classes, num_classes, dtype=torch.float64)

    def add(self, probs: Tensor, target: Tensor) -> None:
        self._sums = self._sums.to(probs.device).index_add_(0, target, probs.double())

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        self._sums = all_reduce(self._sums)

    def means(self, counts: Tensor, dtype: torch.dtype) -> Tensor:
        means = self._sums / counts.clamp(min=1).unsqueeze(-1)
        means[counts == 0] = 1.0 / len(counts)
        return means.to(dtype)


class _LargestEntries:
    """Sums of the largest entries of each row, kept on the CPU: sums there do not depend on the order of threads.

    An entry is a pair: the key ``row * C + column`` and the sum. Batches are buffered and merged now and then.
    """

    def __init__(self, num_classes: int, kept: int) -> None:
        self._num_classes, self._kept, self._carried = num_classes, kept, min(2 * kept, num_classes - 1)
        self._own = torch.zeros(num_classes, dtype=torch.float64)
        self._keys = torch.empty(0, dtype=torch.int64)
        self._sums = torch.empty(0, dtype=torch.float64)
        self._new: list[tuple[Tensor, Tensor]] = []
        self._new_entries = 0

    def add(self, probs: Tensor, target: Tensor) -> None:
        label = target.unsqueeze(-1)
        own = probs.gather(-1, label).squeeze(-1)
        others = probs.scatter(-1, label, -1.0)  # the label below every probability
        values, columns = others.topk(self._carried, dim=-1)
        target = target.cpu()
        self._own.index_add_(0, target, own.cpu().double())
        self._new.append(((target.unsqueeze(-1) * self._num_classes + columns.cpu()).flatten(), values.cpu().flatten()))
        self._new_entries += values.numel()
        if self._new_entries >= self._num_classes * self._kept:
            self._merge()

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        if int(all_reduce(torch.ones((), dtype=torch.int64))) > 1:
            raise InputError(f"class means of {self._num_classes} classes cannot be gathered in several processes yet")

    def means(self, counts: Tensor, dtype: torch.dtype) -> Tensor:
        C, K = self._num_classes, self._kept
        device, counts = counts.device, counts.cpu()
        self._merge()
        keys, sums = _largest_of_each_row(self._keys, self._sums, C, K)
        # Every sample brought at least K different columns, so that a row has K entries now, or no sample at all.
        classes, seen = torch.arange(C), counts > 0
        columns = torch.arange(K).repeat(C, 1)
        columns += columns >= classes.unsqueeze(-1)  # a row without a sample: any K columns but its own
        probs = torch.full((C, K), 1.0 / C, dtype=torch.float64)
        columns[seen] = keys.view(-1, K) % C
        probs[seen] = sums.view(-1, K) / counts[seen].unsqueeze(-1)
        own = torch.where(seen, self._own / counts.clamp(min=1), 1.0 / C)

        columns, order = torch.cat([classes.unsqueeze(-1), columns], dim=-1).sort(dim=-1)
        values = torch.cat([own.unsqueeze(-1), probs], dim=-1).to(dtype).gather(-1, order)
        indices = torch.stack([classes.repeat_interleave(K + 1), columns.flatten()])
        table = torch.sparse_coo_tensor(indices, values.flatten(), (C, C), check_invariants=True, is_coalesced=True)
        return table.to(device)

    def _merge(self) -> None:
        """Sum entries with equal keys and keep the largest sums of each row, in the order of their keys."""
        if not self._new:
            return
        keys = torch.cat([self._keys, *(keys for keys, _ in self._new)])
        sums = torch.cat([self._sums, *(values.double() for _, values in self._new)])
        self._new, self._new_entries = [], 0
        keys, place = keys.unique(return_inverse=True)
        sums = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, place, sums)
        self._keys, self._sums = _largest_of_each_row(keys, sums, self._num_classes, self._carried)


def _largest_of_each_row(keys: Tensor, sums: Tensor, num_classes: int, width: int) -> tuple[Tensor, Tensor]:
    """The entries among the ``width`` largest of their row, of equals the one with the lower column; keys ascend."""
    order = sums.argsort(descending=True, stable=True)
    rows = (keys // num_classes)[order]
    rows, by_row = rows.sort(stable=True)
    order = order[by_row]
    rank = torch.arange(len(rows)) - torch.searchsorted(rows, rows)  # searchsorted: where the row begins
    kept = order[rank < width].sort().values
    return keys[kept], sums[kept]
