"""Loaders over other views or other rows of a loader's data set."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from tgeokd.data.batch import Batch
from tgeokd.data.loaders import BatchLoader
from tgeokd.teachers.cache.key import transforms_of
from tgeokd.teachers.ids import ids_of
from tgeokd.utils.errors import InputError

BATCH = 256  # samples per query of the teacher, where the loader has no batch size
SETTINGS = ("batch_size", "sampler", "drop_last", "collate_fn", "generator")
WORKERS = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "persistent_workers", "prefetch_factor")


def cached_ids(batch: Batch) -> Tensor:
    """The sample ids of a batch; see :func:`~tgeokd.teachers.ids.ids_of`."""
    return ids_of(batch, "cached teacher predictions are found", "; or set cache_teacher=False")


def with_views(loader: DataLoader[Any], views: int) -> DataLoader[Any]:
    """A loader like another, with its sampler, over ``views`` fixed augmented versions of its samples."""
    settings = {name: getattr(loader, name) for name in (*SETTINGS, *WORKERS)}
    return BatchLoader(_with_views(loader.dataset, views), **settings)


def _with_views(dataset: Dataset[Any], views: int) -> Dataset[Any]:
    if isinstance(dataset, Subset):
        return Subset(_with_views(dataset.dataset, views), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([_with_views(each, views) for each in dataset.datasets])
    if not transforms_of(dataset)[1]:
        return dataset
    if not hasattr(dataset, "with_views"):
        raise InputError(
            f"the data set {type(dataset).__name__} augments at random and has no with_views(views), so stored logits would "
            "not match its inputs; use ArrayDataset, or cache_teacher=False"
        )
    other: Dataset[Any] = dataset.with_views(views)
    return other


def loader_of_rows(loader: Any, rows: Sequence[int]) -> DataLoader[Any]:
    """Some rows of the loader's data set in this order, with its collation and workers."""
    return DataLoader(
        loader.dataset,
        getattr(loader, "batch_size", None) or BATCH,
        sampler=rows,
        collate_fn=getattr(loader, "collate_fn", None),
        num_workers=getattr(loader, "num_workers", 0) if len(rows) > BATCH else 0,
        worker_init_fn=getattr(loader, "worker_init_fn", None),
    )


def check_deterministic(loader: Iterable[Any]) -> None:
    """Raise :class:`InputError` where two passes begin with different inputs of the same samples, or have no batch."""
    items = [item for _ in range(2) for item in islice(loader, 1)]
    if len(items) < 2:
        raise InputError("the training loader is empty, or can be read only once")
    first, second = map(Batch.parse, items)
    same_samples = torch.equal(cached_ids(first).cpu(), cached_ids(second).cpu())  # else the loader shuffles
    if same_samples and not _equal(first.inputs, second.inputs):
        raise InputError(
            "the loader yields other inputs for the same samples on each pass, so stored logits would not match them; use "
            "ArrayDataset with a transform that has view(inputs, ids, view), or cache_teacher=False"
        )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.allclose(first, second, rtol=0, atol=0, equal_nan=first.is_floating_point())
    if isinstance(first, dict):
        return all(_equal(value, second[key]) for key, value in first.items())
    if isinstance(first, tuple | list):
        return all(map(_equal, first, second))
    return True
