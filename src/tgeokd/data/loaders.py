"""Batches: orders and loaders, the union of two loaders, and the endless stream of validation batches."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.dataloader import default_collate

from tgeokd.core.model_call import random_state, replayed
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.datasets import FetchesBatches, StoredInBlocks, joined
from tgeokd.data.sampler import BlockShuffle, own_generator
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)


class BatchLoader(DataLoader[Any]):
    """A ``DataLoader`` that makes no list of row numbers where the data set can ``fetch`` a batch: no Python per row.

    The batches, their order, and what is drawn from which generator are those of a ``DataLoader`` with the same arguments. A
    data set without ``fetch(rows)``, worker processes, pinned memory, and samplers and collations of the user's own are left
    to torch.

    Worker processes change neither the order nor what is drawn, also where they persist (torch then draws less).

    Args:
        never_alone: put a last batch of one sample into the batch before it. Batch norm refuses a single sample.
        **options: of ``DataLoader``.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int | None = 1, *, never_alone: bool = False, **options: Any):
        super().__init__(dataset, batch_size, **options)
        self.never_alone = False
        if never_alone and batch_size is not None and batch_size > 1 and not self.drop_last:
            size = len(self.sampler)  # type: ignore[arg-type]
            self.never_alone = size > batch_size and size % batch_size == 1
        if self.never_alone:  # a DataLoader refuses another batch sampler after its own
            object.__setattr__(self, "batch_sampler", _NeverAlone(self.sampler, batch_size or 1, drop_last=False))

    def __iter__(self) -> Any:
        chunks = self._chunks()
        if chunks is None:
            if self.persistent_workers and getattr(self, "_iterator", None) is not None:
                torch.empty((), dtype=torch.int64).random_(generator=self.generator)  # as for new worker processes
            return super().__iter__()
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)  # what torch seeds worker processes with
        return self._batches(chunks)

    def _chunks(self) -> Iterator[Tensor] | None:
        """The order of a pass in pieces; None where batches or their order are left to torch."""
        plain = self.num_workers == 0 and not self.pin_memory and self.collate_fn is default_collate
        if not plain or self.never_alone or self.batch_size is None or not isinstance(self.dataset, FetchesBatches):
            return None
        sampler, size = self.sampler, len(self.dataset)  # type: ignore[arg-type]
        if isinstance(sampler, BlockShuffle):
            return sampler.windows()
        if isinstance(sampler, SequentialSampler):
            return iter([torch.arange(size)])
        if isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size:
            return _permuted(size, sampler.generator)
        return None

    def _batches(self, chunks: Iterator[Tensor]) -> Iterator[Any]:
        size: int = self.batch_size  # type: ignore[assignment]
        device = getattr(self.dataset, "device", None)
        left = torch.empty(0, dtype=torch.int64)
        for chunk in chunks:
            rows = torch.cat([left, chunk]) if len(left) else chunk
            whole = len(rows) - len(rows) % size
            left = rows[whole:]
            on_device = rows if device is None else rows.to(device)  # one copy for many batches
            for start in range(0, whole, size):
                yield self.dataset.fetch(on_device[start : start + size])  # type: ignore[attr-defined]
        if len(left) and not self.drop_last:
            yield self.dataset.fetch(left)  # type: ignore[attr-defined]


class _NeverAlone(BatchSampler):
    """Batches of a size, the last of them with one sample more where one is left over."""

    def __iter__(self) -> Iterator[list[int]]:
        held: list[int] | None = None
        for batch in super().__iter__():
            if held is not None:
                if len(batch) == 1:
                    held += batch
                    break
                yield held
            held = batch
        if held is not None:
            yield held

    def __len__(self) -> int:
        return max(super().__len__() - 1, 1)


def _permuted(size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """One piece, drawn when the first batch is asked for, as torch's ``RandomSampler`` does."""
    yield torch.randperm(size, generator=own_generator(generator))
    if generator is not None:
        torch.randperm(size, generator=generator)  # torch's sampler draws an order that it takes no row of


def shuffling(dataset: Dataset[Any], generator: torch.Generator | None = None) -> dict[str, Any]:
    """Arguments of a ``DataLoader`` that shuffles: by blocks where the data set has a ``block_size``, else freely."""
    if not isinstance(dataset, StoredInBlocks):
        return {"shuffle": True, "generator": generator}
    return {"sampler": BlockShuffle(len(dataset), dataset.block_size, generator), "generator": generator}  # type: ignore[arg-type]


def union_loader(train: Iterable[Any], held_out: Iterable[Any], *, numbered: bool = False) -> DataLoader[Any]:
    """A loader over the training and the validation samples, otherwise like ``train``; both map-style.

    It shuffles where ``train`` does; else the validation samples follow the training samples. Its last batch never holds a
    single sample. What cannot be extended to more samples is refused: a batch sampler, a sampler other than torch's plain ones
    (weighted, with replacement, of a number of samples), a subclass with its own ``__iter__``.

    With ``numbered``, samples without ids get numbers as ids where the loader collates them as torch does by default.
    """
    advice = "pass a training loader over both sets yourself and use outer='holdout'"
    for name, loader in (("training", train), ("validation", held_out)):
        if not _rebatchable(loader):
            raise InputError(
                f"outer='union' must mix two torch DataLoaders over map-style data sets with a batch_size, and the {name} "
                f"loader is {_described(loader)}; {advice}"
            )
    assert isinstance(train, DataLoader)
    assert isinstance(held_out, DataLoader)
    if type(train).__iter__ not in (DataLoader.__iter__, BatchLoader.__iter__):
        raise InputError(f"outer='union' would lose what {type(train).__name__}.__iter__ does; {advice}")
    if not _extendable(train.sampler):
        sampler = type(train.sampler).__name__
        raise InputError(f"outer='union' cannot extend the sampler {sampler} to the validation samples; {advice}")
    with replayed(random_state(torch.device("cpu"))):  # a sample may be augmented
        samples = [loader.dataset[0] for loader in (train, held_out) if len(loader.sampler)]  # type: ignore[arg-type]
    forms = [len(sample) for sample in samples if isinstance(sample, tuple | list)]
    if len(set(forms)) > 1:
        raise InputError(f"outer='union' cannot mix samples of {forms[0]} and of {forms[1]} values; {advice}")
    dataset = joined(train.dataset, held_out.dataset)
    if numbered and forms[:1] == [2] and train.collate_fn is default_collate:
        dataset = NumberedUnion(dataset, first_validation=len(train.dataset))  # type: ignore[arg-type]
    shuffled = not isinstance(train.sampler, SequentialSampler)
    size, options = train.batch_size or 1, {"drop_last": train.drop_last, "generator": train.generator}
    return _like(train, dataset, size, shuffled=shuffled, never_alone=True, **options)


class NumberedUnion(Dataset[Any], FetchesBatches):
    """Training and validation samples without ids of their own, numbered: a batch is ``(inputs, target, ids)``.

    Attributes:
        validation_ids: numbers of the validation samples, int64.
    """

    def __init__(self, dataset: Dataset[Any], first_validation: int) -> None:
        self.dataset = dataset
        self.validation_ids = torch.arange(first_validation, len(dataset))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.dataset[index], index)

    def fetch(self, rows: Tensor) -> tuple[Any, ...]:
        """The samples of some row numbers as one batch."""
        if isinstance(self.dataset, FetchesBatches):
            return (*self.dataset.fetch(rows), rows)
        samples = default_collate([self.dataset[int(row)] for row in rows])
        return (*samples, rows)


def numbered_ids(loader: Iterable[Any]) -> Tensor | None:
    """Ids of the validation samples in a loader made by :func:`union_loader`, where the samples have none of their own."""
    found: Tensor | None = getattr(getattr(loader, "dataset", None), "validation_ids", None)
    return found


def resident(dataset: Dataset[Any], device: torch.device) -> Dataset[Any]:
    """The data set with its tensors on a CUDA device where they take less than half of its free memory; else as it is."""
    if device.type != "cuda" or not isinstance(dataset, ArrayDataset) or dataset.device == device:
        return dataset
    free, _ = torch.cuda.mem_get_info(device)
    fits = dataset.nbytes < free / 2
    where = f"kept on {device}" if fits else f"left in main memory: more than half of what is free on {device}"
    logger.info("data set of %d samples, %.0f MB: %s", len(dataset), dataset.nbytes / 1e6, where)
    return dataset.to(device) if fits else dataset


class OuterStream:
    """Validation batches without end, reshuffled on every pass.

    Every epoch has its own order, drawn from the seed and the epoch alone: a resumed run gets the same batches, and the
    global random state is not changed.

    Args:
        source: of the batches. A ``DataLoader`` over a map-style data set is re-batched and shuffled; any other iterable is
            repeated as it is.
        batch_size: samples in an outer batch, for a source that can be re-batched; None for the batch size of the source.
        seed: of the orders.
        limit: with None, no more samples than this where the source can be re-batched.
    """

    def __init__(self, source: Iterable[Any], batch_size: int | None, seed: int, *, limit: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"outer_batch_size must be >= 1, not {batch_size}")
        self._seed, self._generator, self._loader = seed, torch.Generator(), source
        self._iterator: Iterator[Any] = iter(())
        self._epoch, self._drawn = 0, 0
        if _rebatchable(source):
            size = batch_size or min(source.batch_size or 1, limit or len(source.dataset))  # type: ignore[arg-type]
            size = min(size, len(source.dataset))  # type: ignore[arg-type]
            self._loader = _like(source, source.dataset, size, shuffled=True, drop_last=True, generator=self._generator)
        elif batch_size is not None:
            raise InputError("outer_batch_size needs a torch DataLoader over a map-style data set to draw from")

    def start_epoch(self, epoch: int) -> None:
        """Begin the order of an epoch."""
        self._generator.manual_seed((self._seed * 1_000_003 + epoch) & 0x7FFFFFFFFFFFFFFF)
        self._iterator = iter(())
        self._epoch, self._drawn = epoch, 0

    def __next__(self) -> Any:
        self._drawn += 1
        try:
            return next(self._iterator)
        except StopIteration:
            with replayed(random_state(torch.device("cpu"))):  # a DataLoader draws a seed when it starts
                self._iterator = iter(self._loader)
            try:
                return next(self._iterator)
            except StopIteration:
                raise InputError("validation batches can be read only once; give a list or a DataLoader") from None

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many batches were drawn in it."""
        return {"epoch": self._epoch, "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that :meth:`state_dict` counted, which are read again."""
        self.start_epoch(state["epoch"])
        for _ in range(state["drawn"]):
            next(self)


def order_of(loader: Iterable[Any]) -> torch.Generator | None:
    """The generator that a loader draws its order from, where it has its own."""
    own = getattr(loader, "generator", None)
    return own if own is not None else getattr(getattr(loader, "sampler", None), "generator", None)


def state_of(loader: Any) -> dict[str, Any] | None:
    """Where a loader stands, as torchdata's ``StatefulDataLoader`` says it; None for one that does not."""
    if not (callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))):
        return None
    state: dict[str, Any] = loader.state_dict()
    return state


def load_state(loader: Any, state: dict[str, Any]) -> bool:
    """Put a loader where it stood; False for one that cannot be."""
    if not callable(getattr(loader, "load_state_dict", None)):
        return False
    loader.load_state_dict(state)
    return True


def _rebatchable(loader: Any) -> TypeGuard[DataLoader[Any]]:
    if not isinstance(loader, DataLoader) or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return False
    return hasattr(loader.dataset, "__len__") and hasattr(loader.dataset, "__getitem__")


def _extendable(sampler: Any) -> bool:
    """Whether a sampler goes through all samples once, so that it can go through more of them."""
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) in (SequentialSampler, BlockShuffle)


def _described(loader: Any) -> str:
    if not isinstance(loader, DataLoader):
        return f"of type {type(loader).__name__}"
    if isinstance(loader.dataset, IterableDataset):
        return "over an IterableDataset"
    return "one with a batch_sampler" if loader.batch_sampler is not None else "one without a batch_size"


def _like(
    loader: DataLoader[Any],
    dataset: Any,
    batch_size: int,
    *,
    shuffled: bool,
    drop_last: bool,
    generator: torch.Generator | None,
    never_alone: bool = False,
) -> DataLoader[Any]:
    """A loader over another data set with all other settings of ``loader``."""
    order: dict[str, Any] = shuffling(dataset, generator) if shuffled else {"generator": generator}
    if loader.num_workers > 0:
        names = (
            "num_workers",
            "persistent_workers",
            "prefetch_factor",
            "timeout",
            "multiprocessing_context",
            "in_order",
        )
        order |= {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return BatchLoader(
        dataset,
        batch_size,
        **order,
        never_alone=never_alone,
        drop_last=drop_last,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
