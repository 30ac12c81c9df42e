"""Batches: vectorised array data sets, the union of two loaders, and the endless stream of held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)
from torch.utils.data._utils.collate import default_collate_fn_map

from tgeokd.errors import InputError
from tgeokd.modules import random_state, replayed

__all__ = [
    "ArrayDataset",
    "BlockShuffle",
    "OuterStream",
    "WholeBatch",
    "group",
    "joined",
    "shuffling",
    "subset",
    "union_loader",
]


class WholeBatch(tuple[Any, ...]):
    """A batch fetched as a whole. torch's default collation, extended here as its documentation says, passes it on."""


default_collate_fn_map[WholeBatch] = lambda batch, *, collate_fn_map=None: tuple(batch[0])


class ArrayDataset(Dataset[Any]):
    """Samples held in tensors. A loader fetches a whole batch by one indexing, no Python per row.

    Args:
        inputs: one tensor of shape (N, ...), or a tuple of such tensors.
        target: class indices, shape (N,).
        ids: what the samples are called, int64, shape (N,); a batch is then ``(inputs, target, ids)``.
        transform: of a whole batch of inputs as it is fetched, for example augmentation.
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

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        (batch,) = self.__getitems__([index])
        return tuple(_first(part) for part in batch)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows = torch.as_tensor(indices)
        inputs = tuple(part[rows] for part in self.inputs) if isinstance(self.inputs, tuple) else self.inputs[rows]
        if self.transform is not None:
            inputs = self.transform(inputs)
        ids = () if self.ids is None else (self.ids[rows],)
        return [WholeBatch((inputs, self.target[rows], *ids))]

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These samples and then those of ``other``, all with this data set's transform."""
        if not isinstance(other, ArrayDataset) or (self.ids is None) != (other.ids is None):
            return ConcatDataset([self, other])
        both = [torch.cat(pair) for pair in zip(_parts(self.inputs), _parts(other.inputs), strict=True)]
        ids = torch.cat([self.ids, other.ids]) if self.ids is not None and other.ids is not None else None
        inputs = tuple(both) if isinstance(self.inputs, tuple) else both[0]
        return ArrayDataset(inputs, torch.cat([self.target, other.target]), ids, self.transform)

    def subset(self, rows: list[int]) -> ArrayDataset:
        """The samples of some rows."""
        kept = torch.as_tensor(rows, dtype=torch.int64)
        parts = tuple(part[kept] for part in _parts(self.inputs))
        ids = None if self.ids is None else self.ids[kept]
        inputs = parts if isinstance(self.inputs, tuple) else parts[0]
        return ArrayDataset(inputs, self.target[kept], ids, self.transform)


class BlockShuffle(Sampler[int]):
    """A shuffled order whose reads stay local, for data sets on disk that are larger than memory.

    Blocks of consecutive rows come in random order; the rows of ``window`` blocks at a time are shuffled together. Memory is
    that of one window, whatever the size of the data set.

    Args:
        size: rows of the data set.
        block_size: rows of a block.
        generator: of the order; by default seeded from torch's global generator on every pass.
        window: blocks shuffled together.
    """

    def __init__(self, size: int, block_size: int, generator: torch.Generator | None, window: int = 16) -> None:
        if block_size < 1:
            raise InputError(f"block_size must be >= 1, not {block_size}")
        self.size, self.block_size, self.generator, self.window = size, block_size, generator, window

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if generator is None:
            generator = torch.Generator()
            generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        starts = torch.randperm(-(-self.size // self.block_size), generator=generator) * self.block_size
        for blocks in starts.split(self.window) if self.size else ():
            rows = torch.cat([torch.arange(s, min(s + self.block_size, self.size)) for s in blocks.tolist()])
            yield from rows[torch.randperm(len(rows), generator=generator)].tolist()


def shuffling(dataset: Dataset[Any], generator: torch.Generator | None = None) -> dict[str, Any]:
    """Arguments of a ``DataLoader`` that shuffles: by blocks where the data set has a ``block_size``, else freely."""
    block_size = getattr(dataset, "block_size", None)
    if block_size is None:
        return {"shuffle": True, "generator": generator}
    return {"sampler": BlockShuffle(len(dataset), block_size, generator), "generator": generator}  # type: ignore[arg-type]


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
    if not isinstance(train.sampler, SequentialSampler | RandomSampler | BlockShuffle):
        raise InputError(
            f"outer='union' cannot extend the sampler {type(train.sampler).__name__} to the held-out samples; pass a training "
            "loader over both parts yourself and use outer='holdout'"
        )
    dataset = joined(train.dataset, held_out.dataset)
    return _like(train, dataset, train.batch_size or 1, drop_last=train.drop_last, generator=train.generator)


def joined(first: Dataset[Any], second: Dataset[Any]) -> Dataset[Any]:
    """Both data sets as one, in the way of the first where it knows one (``join``)."""
    join: Callable[[Dataset[Any]], Dataset[Any]] | None = getattr(first, "join", None)
    return join(second) if join is not None else ConcatDataset([first, second])


def subset(dataset: Dataset[Any], rows: list[int]) -> Dataset[Any]:
    """Some rows of a data set, in its own way where it knows one (``subset``)."""
    own: Callable[[list[int]], Dataset[Any]] | None = getattr(dataset, "subset", None)
    return own(rows) if own is not None else Subset(dataset, rows)


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
        **shuffling(dataset, generator),
        drop_last=drop_last,
        collate_fn=fetch,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.num_workers > 0,
        worker_init_fn=loader.worker_init_fn,
    )


def _parts(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _first(part: Any) -> Any:
    """The only sample of a batch of one."""
    return tuple(_first(each) for each in part) if isinstance(part, tuple) else part[0]
