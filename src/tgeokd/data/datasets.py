"""What this package uses of a data set beyond ``torch.utils.data.Dataset``, and how it is used for any data set.

Every protocol is optional: a data set that does not implement one is handled in the general, slower or more restricted way.
"""

import copy
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset


@runtime_checkable
class FetchesBatches(Protocol):
    """Returns a whole batch by one call instead of one sample at a time."""

    def fetch(self, rows: Tensor) -> tuple[Any, ...]:
        """The batch of some row numbers, int64, shape (n,)."""


@runtime_checkable
class StoredInBlocks(Protocol):
    """Stored on disk in blocks of consecutive rows; shuffling keeps reads within a few blocks."""

    block_size: int


@runtime_checkable
class Fingerprinted(Protocol):
    """Can tell whether stored predictions of a teacher belong to it."""

    def fingerprint(self) -> str:
        """A digest of everything that predictions depend on: inputs, ids and transform."""


@runtime_checkable
class HasViews(Protocol):
    """Can augment each sample in a fixed number of reproducible versions, its views."""

    views: int | None  # None where a random transform draws new numbers on every access

    def with_views(self, views: int) -> Dataset[Any]:
        """The same samples in a fixed number of views."""

    def set_view(self, view: int) -> None:
        """Select the view that is returned from the next batch on."""


@runtime_checkable
class Joinable(Protocol):
    """Can be extended by another data set."""

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples followed by those of another data set, with this one's transform."""


@runtime_checkable
class Subsettable(Protocol):
    """Can be restricted to some of its samples."""

    def subset(self, rows: list[int]) -> Dataset[Any]:
        """The samples of some row numbers."""


def joined(first: Dataset[Any], second: Dataset[Any]) -> Dataset[Any]:
    """Both data sets as one, by the first one's ``join`` where it has one."""
    return first.join(second) if isinstance(first, Joinable) else ConcatDataset([first, second])


def subset(dataset: Dataset[Any], rows: list[int]) -> Dataset[Any]:
    """The samples of some row numbers, by the data set's own ``subset`` where it has one."""
    return dataset.subset(rows) if isinstance(dataset, Subsettable) else Subset(dataset, rows)


def with_transform_of(dataset: Dataset[Any], other: Dataset[Any]) -> Dataset[Any]:
    """The samples of a data set with the transform of another one, where both have one; otherwise the data set as it is."""
    if not hasattr(dataset, "transform") or not hasattr(other, "transform"):
        return dataset
    changed = copy.copy(dataset)
    changed.transform = other.transform
    return changed


def views_of(loader: Iterable[Any]) -> int | None:
    """The number of views of a loader's data set; None where it has none, or its parts differ."""
    parts = parts_of(getattr(loader, "dataset", None))
    found = {part.views if isinstance(part, HasViews) else None for part in parts}
    return found.pop() if len(found) == 1 else None


def set_view(loader: Iterable[Any], view: int) -> None:
    """Select the view of all samples of a loader. Parts of its data set without views stay as they are."""
    for part in parts_of(getattr(loader, "dataset", None)):
        if isinstance(part, HasViews) and part.views is not None:
            part.set_view(view)


def parts_of(dataset: Any) -> list[Any]:
    """The data sets inside ``Subset`` and ``ConcatDataset``; the data set itself where it is neither."""
    if isinstance(dataset, Subset):
        return parts_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [part for each in dataset.datasets for part in parts_of(each)]
    return [dataset]


def is_random(transform: Any) -> bool:
    """Whether a transform declares, by ``random = True``, that it draws random numbers."""
    return bool(getattr(transform, "random", False))
