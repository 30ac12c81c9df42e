"""Samples held in tensors, fetched one batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from tgeokd.data.datasets import FetchesBatches, Fingerprinted, HasViews, Joinable, Subsettable, is_random
from tgeokd.utils.errors import InputError

Inputs = Tensor | tuple[Tensor, ...]


class WholeBatch(tuple[Any, ...]):
    """A batch fetched as a whole. The default collation, extended here as PyTorch documents it, returns it unchanged."""


default_collate_fn_map[WholeBatch] = lambda batch, *, collate_fn_map=None: tuple(batch[0])


class ArrayDataset(Dataset[Any], FetchesBatches, Fingerprinted, HasViews, Joinable, Subsettable):
    """Samples held in tensors. A loader fetches a whole batch by one indexing operation, without Python per row.

    A transform that draws random numbers declares it by an attribute ``random = True``. Where it also has a method
    ``view(inputs, ids, view)``, whose draws depend on sample ids and the number of the view alone, :meth:`with_views` returns
    a data set whose augmented samples can be reproduced.

    Args:
        inputs: one tensor of shape (N, ...), or a tuple of such tensors.
        target: class indices, shape (N,).
        ids: sample ids, int64, shape (N,); a batch is then ``(inputs, target, ids)``.
        transform: applied to a whole batch of inputs as it is fetched, for example augmentation.

    Attributes:
        views: number of augmented versions of each sample; None where a random transform draws new numbers on every access.
    """

    def __init__(
        self, inputs: Inputs, target: Tensor, ids: Tensor | None = None, transform: Callable[[Any], Any] | None = None
    ) -> None:
        for name, tensors in (("inputs", _tensors(inputs)), ("ids", _tensors(ids))):
            for tensor in tensors:
                if len(tensor) != len(target):
                    raise InputError(f"{name} have {len(tensor)} rows but target has {len(target)}")
        self.inputs, self.target, self.ids, self.transform = inputs, target, ids, transform
        self.views: int | None = None
        self._view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(_first(item) for item in self.fetch(torch.as_tensor([range(len(self))[index]])))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [WholeBatch(self.fetch(torch.as_tensor(indices)))]

    def fetch(self, rows: Tensor) -> tuple[Any, ...]:
        """The samples of some row numbers, int64, shape (n,), as one batch on the device of this data set."""
        rows = rows.to(self.device, non_blocking=True)
        # several times faster than tensor[rows]
        inputs, target, ids = self._change_all(lambda tensor: tensor.index_select(0, rows))
        if self._view is not None and is_random(self.transform):
            inputs = self.transform.view(inputs, ids, int(self._view))  # type: ignore[union-attr]
        elif self.transform is not None:
            inputs = self.transform(inputs)
        return (inputs, target, *_tensors(ids))

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples followed by those of ``other``, all with this data set's transform and views."""
        if not isinstance(other, ArrayDataset) or (self.ids is None) != (other.ids is None):
            return ConcatDataset([self, other])
        added = other.to(self.device)
        pairs = zip(_tensors(self.inputs), _tensors(added.inputs), strict=True)
        inputs = tuple(torch.cat(pair) for pair in pairs)
        ids = None if self.ids is None else torch.cat([self.ids, *_tensors(added.ids)])
        target = torch.cat([self.target, added.target])
        return self._like(inputs if isinstance(self.inputs, tuple) else inputs[0], target, ids)

    def subset(self, rows: list[int]) -> ArrayDataset:
        """The samples of some rows, with this data set's transform and views."""
        kept = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        return self._like(*self._change_all(lambda tensor: tensor[kept]))

    def to(self, device: torch.device | str) -> ArrayDataset:
        """The same samples with their tensors on a device, where batches are then made."""
        return self._like(*self._change_all(lambda tensor: tensor.to(device)))

    def with_views(self, views: int) -> ArrayDataset:
        """The same samples, not copied, in ``views`` augmented versions each, of which one is selected at a time.

        Version ``v`` of a sample depends on its id and ``v`` alone, whatever batch it is in. A random transform needs ids and
        a method ``view``.
        """
        if views < 1:
            raise InputError(f"views must be >= 1, not {views}")
        if is_random(self.transform):
            if not hasattr(self.transform, "view"):
                given = type(self.transform).__name__
                raise InputError(f"views need a transform with view(inputs, ids, view), which {given} does not have")
            if self.ids is None:
                raise InputError("views depend on sample ids, and this data set has none: pass ids=")
        other = self._like(self.inputs, self.target, self.ids)
        other.views, other._view = views, torch.zeros((), dtype=torch.int64).share_memory_()
        return other

    def set_view(self, view: int) -> None:
        """Select the view of the next batches, in [0, ``views``), also in worker processes, joined data sets and subsets."""
        if self._view is None or not 0 <= view < (self.views or 0):
            raise InputError(f"view must lie in [0, {self.views or 0}), the views of this data set, not {view}")
        self._view.fill_(view)  # in shared memory

    def fingerprint(self) -> str:
        """A digest of inputs, ids and transform, which a teacher's predictions depend on: 16 hexadecimal digits of SHA-256.

        The transform counts by its ``repr``, which must name all its settings, as that of a dataclass does; that of a function
        contains an address and differs between processes. Labels do not count. Takes about 0.1 s for 150 MB.
        """
        digest = hashlib.sha256(repr(self.transform).encode())
        for tensor in (*_tensors(self.inputs), *_tensors(self.ids)):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """The device of the tensors, where batches are made."""
        return self.target.device

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensor in (*_tensors(self.inputs), self.target, *_tensors(self.ids)))

    def _change_all(self, change: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor, Tensor | None]:
        """Inputs, target and ids, each changed in this order."""
        inputs = tuple(map(change, self.inputs)) if isinstance(self.inputs, tuple) else change(self.inputs)
        return inputs, change(self.target), None if self.ids is None else change(self.ids)

    def _like(self, inputs: Inputs, target: Tensor, ids: Tensor | None) -> ArrayDataset:
        other = ArrayDataset(inputs, target, ids, self.transform)
        other.views, other._view = self.views, self._view
        return other


def _tensors(given: Inputs | None) -> tuple[Tensor, ...]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def _first(item: Any) -> Any:
    """The only sample of a batch of one."""
    return tuple(_first(each) for each in item) if isinstance(item, tuple) else item[0]
