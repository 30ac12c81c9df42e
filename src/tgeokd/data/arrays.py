"""Samples held in tensors, fetched a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from tgeokd.utils.errors import InputError

__all__ = ["ArrayDataset", "WholeBatch"]


class WholeBatch(tuple[Any, ...]):
    """A batch fetched as a whole. torch's default collation, extended here as its documentation says, passes it on."""


default_collate_fn_map[WholeBatch] = lambda batch, *, collate_fn_map=None: tuple(batch[0])


class ArrayDataset(Dataset[Any]):
    """Samples held in tensors. A loader fetches a whole batch by one indexing, no Python per row.

    A transform that draws at random says so by ``random = True``. Where it also has ``view(inputs, ids, view)``, which draws
    from the sample's id and the number of the view alone, :meth:`with_views` gives a data set whose augmented samples can be
    named and made again.

    Args:
        inputs: one tensor of shape (N, ...), or a tuple of such tensors.
        target: class indices, shape (N,).
        ids: what the samples are called, int64, shape (N,); a batch is then ``(inputs, target, ids)``.
        transform: of a whole batch of inputs as it is fetched, for example augmentation.

    Attributes:
        views: how many augmented versions of each sample there are; None where a random transform draws afresh every time.
    """

    def __init__(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Tensor,
        ids: Tensor | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        for name, part in [*(("inputs", part) for part in _parts(inputs)), ("ids", ids)]:
            if part is not None and len(part) != len(target):
                raise InputError(f"{name} have {len(part)} rows but target has {len(target)}")
        self.inputs, self.target, self.ids, self.transform = inputs, target, ids, transform
        self.views: int | None = None
        self._view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(_first(part) for part in self.fetch(torch.as_tensor([range(len(self))[index]])))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [WholeBatch(self.fetch(torch.as_tensor(indices)))]

    def fetch(self, rows: Tensor) -> tuple[Any, ...]:
        """The samples of some rows as one batch, on the device of this data set.

        Args:
            rows: row numbers, int64, shape (n,), on any device.
        """
        rows = rows.to(self.device, non_blocking=True)
        ids = None if self.ids is None else self.ids.index_select(0, rows)
        parts = tuple(
            part.index_select(0, rows) for part in _parts(self.inputs)
        )  # several times faster than part[rows]
        inputs: Any = parts if isinstance(self.inputs, tuple) else parts[0]
        if self._view is not None and _is_random(self.transform):
            inputs = self.transform.view(inputs, ids, int(self._view))  # type: ignore[union-attr]
        elif self.transform is not None:
            inputs = self.transform(inputs)
        return (inputs, self.target.index_select(0, rows), *(() if ids is None else (ids,)))

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples and then those of ``other``, all with this data set's transform and views."""
        if not isinstance(other, ArrayDataset) or (self.ids is None) != (other.ids is None):
            return ConcatDataset([self, other])
        device = self.device
        both = [torch.cat([a, b.to(device)]) for a, b in zip(_parts(self.inputs), _parts(other.inputs), strict=True)]
        ids = torch.cat([self.ids, other.ids.to(device)]) if self.ids is not None and other.ids is not None else None
        inputs = tuple(both) if isinstance(self.inputs, tuple) else both[0]
        return self._like(inputs, torch.cat([self.target, other.target.to(device)]), ids)

    def subset(self, rows: list[int]) -> ArrayDataset:
        """The samples of some rows, with this data set's transform and views."""
        kept = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        parts = tuple(part[kept] for part in _parts(self.inputs))
        ids = None if self.ids is None else self.ids[kept]
        return self._like(parts if isinstance(self.inputs, tuple) else parts[0], self.target[kept], ids)

    def to(self, device: torch.device | str) -> ArrayDataset:
        """The same samples with their tensors on a device; batches are then made there."""
        parts = tuple(part.to(device) for part in _parts(self.inputs))
        ids = None if self.ids is None else self.ids.to(device)
        return self._like(parts if isinstance(self.inputs, tuple) else parts[0], self.target.to(device), ids)

    def with_views(self, views: int) -> ArrayDataset:
        """The same samples, not copied, in ``views`` augmented versions each, of which one is seen at a time.

        Version ``v`` of a sample follows from its id and ``v``, whatever batch it is in.

        Raises:
            InputError: for less than one view, or a random transform that cannot make views or has no ids to make them from.
        """
        if views < 1:
            raise InputError(f"views must be >= 1, not {views}")
        if _is_random(self.transform):
            if not hasattr(self.transform, "view"):
                raise InputError(
                    f"views need a transform with view(inputs, ids, view), which {type(self.transform).__name__} lacks"
                )
            if self.ids is None:
                raise InputError("views of augmented samples are drawn from their ids, and this data set has none")
        other = self._like(self.inputs, self.target, self.ids)
        other.views, other._view = views, torch.zeros((), dtype=torch.int64).share_memory_()
        return other

    def set_view(self, view: int) -> None:
        """Choose the version that is seen from the next batch on, by worker processes and in joined and partial data sets too.

        Raises:
            InputError: for a view that is not one of ``views``.
        """
        if self._view is None or not 0 <= view < (self.views or 0):
            raise InputError(f"view {view} is none of {self.views or 'no'} views, counted from 0")
        self._view.fill_(view)  # in shared memory

    def fingerprint(self) -> str:
        """What a teacher's predictions for this data set depend on, in 16 hexadecimal digits: inputs, ids and transform.

        The transform counts by its ``repr``, which must name all its settings (a dataclass's does); that of a bare function
        has an address in it and is another one in every process. Labels do not count. SHA-256, about 0.1 s for 150 MB.
        """
        digest = hashlib.sha256(repr(self.transform).encode())
        for part in (*_parts(self.inputs), *(() if self.ids is None else (self.ids,))):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where its tensors are, and its batches are made."""
        return self.target.device

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        held = (*_parts(self.inputs), self.target, *(() if self.ids is None else (self.ids,)))
        return sum(part.nbytes for part in held)

    def _like(self, inputs: Tensor | tuple[Tensor, ...], target: Tensor, ids: Tensor | None) -> ArrayDataset:
        other = ArrayDataset(inputs, target, ids, self.transform)
        other.views, other._view = self.views, self._view
        return other


def _parts(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _is_random(transform: Any) -> bool:
    return bool(getattr(transform, "random", False))


def _first(part: Any) -> Any:
    """The only sample of a batch of one."""
    return tuple(_first(each) for each in part) if isinstance(part, tuple) else part[0]
