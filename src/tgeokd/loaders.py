"""Batches: vectorised array data sets, the union of two loaders, and the endless stream of held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data._utils.collate import default_collate_fn_map

from tgeokd.errors import InputError
from tgeokd.modules import random_state, replayed

__all__ = ["ArrayDataset", "OuterStream", "group", "joined", "union_loader"]


class _WholeBatch(tuple[Tensor, Tensor]):
    """A batch fetched as a whole. torch's default collation, extended here as its documentation says, passes it on."""


default_collate_fn_map[_WholeBatch] = lambda batch, *, collate_fn_map=None: tuple(batch[0])


class ArrayDataset(Dataset[Any]):
    """Samples held in two tensors. A loader fetches a whole batch by one indexing, no Python per row.

    Args:
        inputs: shape (N, ...).
        target: class indices, shape (N,).
    """

    def __init__(self, inputs: Tensor, target: Tensor) -> None:
        if len(inputs) != len(target):
            raise InputError(f"inputs have {len(inputs)} rows but target has {len(target)}")
        self.inputs, self.target = inputs, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.target[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows = torch.as_tensor(indices)
        return [_WholeBatch((self.inputs[rows], self.target[rows]))]


def union_loader(train: Iterable[Any], held_out: Iterable[Any]) -> DataLoader[Any]:
    """A shuffled loader over the training and the held-out samples, otherwise like ``train``.

    Raises:
        ValueError: where either is not a ``DataLoader`` over a map-style data set: how to mix them is then not known.
    """
    if not (_rebatchable(train) and _rebatchable(held_out)):
        raise InputError(
            "outer='union' must mix two torch DataLoaders over map-style data sets; for other loaders pass a training "
            "loader over both parts yourself and use outer='holdout'"
        )
    assert isinstance(train, DataLoader)
    assert isinstance(held_out, DataLoader)
    if not isinstance(train.sampler, SequentialSampler | RandomSampler):
        raise InputError(
            f"outer='union' cannot extend the sampler {type(train.sampler).__name__} to the held-out samples; pass a training "
            "loader over both parts yourself and use outer='holdout'"
        )
    dataset = joined(train.dataset, held_out.dataset)
    return _like(train, dataset, train.batch_size or 1, drop_last=train.drop_last, generator=train.generator)


def joined(first: Dataset[Any], second: Dataset[Any]) -> Dataset[Any]:
    """Both data sets as one, in arrays where both are."""
    if isinstance(first, ArrayDataset) and isinstance(second, ArrayDataset):
        return ArrayDataset(torch.cat([first.inputs, second.inputs]), torch.cat([first.target, second.target]))
    return ConcatDataset([first, second])


class OuterStream:
    """Held-out batches without end, reshuffled on every pass.

    Every epoch has its own order, drawn from the seed and the epoch alone: a resumed run sees the same batches, and the
    global random state is not touched.

    Args:
        source: where batches come from. A ``DataLoader`` over a map-style data set is re-batched and shuffled; any other
            iterable is repeated as it is.
        batch_size: samples in an outer batch.
        seed: of the orders.

    Raises:
        ValueError: where ``batch_size`` is given for a source that cannot be re-batched.
    """

    def __init__(self, source: Iterable[Any], batch_size: int | None, seed: int) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"outer_batch_size must be >= 1, not {batch_size}")
        self._seed = seed
        self._generator = torch.Generator()
        self._loader = source
        self._iterator: Iterator[Any] = iter(())
        if isinstance(source, DataLoader) and _rebatchable(source):
            size = min(batch_size or source.batch_size or 1, len(source.dataset))  # type: ignore[arg-type]
            self._loader = _like(source, source.dataset, size, drop_last=True, generator=self._generator)
        elif batch_size is not None:
            raise InputError("outer_batch_size needs a torch DataLoader over a map-style data set to draw from")

    def start_epoch(self, epoch: int) -> None:
        """Begin the order of an epoch."""
        self._generator.manual_seed((self._seed * 1_000_003 + epoch) & 0x7FFFFFFFFFFFFFFF)
        self._iterator = iter(())

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            with replayed(random_state(torch.device("cpu"))):  # a DataLoader draws a seed when it starts
                self._iterator = iter(self._loader)
            try:
                return next(self._iterator)
            except StopIteration:
                raise InputError("held-out batches can be read only once; give a list or a DataLoader") from None


def group(batches: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """Lists of ``size`` batches; the last may be shorter."""
    pending: list[Any] = []
    for batch in batches:
        pending.append(batch)
        if len(pending) == size:
            yield pending
            pending = []
    if pending:
        yield pending


def _rebatchable(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_size is not None
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__len__")
        and hasattr(loader.dataset, "__getitem__")
    )


def _like(
    loader: DataLoader[Any], dataset: Any, batch_size: int, *, drop_last: bool, generator: torch.Generator | None
) -> DataLoader[Any]:
    """A shuffled loader over another data set with the workers and the collation of ``loader``."""
    fetch: Callable[[Any], Any] = loader.collate_fn
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        drop_last=drop_last,
        collate_fn=fetch,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.num_workers > 0,
        worker_init_fn=loader.worker_init_fn,
        generator=generator,
    )
