"""A teacher that is asked once: its answers for the loaders of a training, kept in a cache."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from tgeokd.core.model_call import random_state, replayed
from tgeokd.data.loaders import BatchLoader, set_view, views_of
from tgeokd.teachers.cache.key import Samples, samples_of, teacher_digest, transforms_of
from tgeokd.teachers.cache.store import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.ids import first_rows
from tgeokd.utils.errors import InputError

__all__ = ["DEFAULT_VIEWS", "CachedTeacher"]

logger = logging.getLogger(__name__)

DEFAULT_VIEWS = 4
"""Each view costs a pass of the teacher and the space of its logits; more of them make training more like fresh draws."""

BATCH = 256  # samples the teacher is asked about at a time, where the loader does not say


class CachedTeacher:
    """Asks a teacher once about every sample, and every view of it, that a training will see.

    Args:
        teacher: what is asked; only a module can be recognised later.
        ask: from a batch's inputs, as a loader gives them, to logits.
        options: how to keep the answers.
        folder: where, unless the options say.
        precision: that the teacher computes in.
        probs: whether the teacher gives probabilities.
        device: where batches go.
    """

    def __init__(
        self,
        teacher: Any,
        ask: Callable[[Any], Tensor],
        options: TeacherCacheOptions,
        folder: Path | None,
        *,
        precision: str,
        probs: bool,
        device: torch.device,
    ) -> None:
        self.options, self.precision, self.device = options, precision, device
        self._ask = ask
        digest = teacher_digest(teacher)
        self._teacher = None if digest is None else digest + (" of probabilities" if probs else "")
        self._folder = Path(options.folder) if options.folder is not None else folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._caches: dict[
            int, tuple[Any, TeacherCache]
        ] = {}  # by the id of the data set, which the loader keeps alive
        self._adopted: int | None = None
        self._resident: dict[int, Callable[[Tensor], Tensor]] = {}
        self._epoch = 0

    # ---- views

    def viewed(self, loader: Iterable[Any], epochs: int) -> Iterable[Any]:
        """The loader, or where its data set augments at random, one like it over a fixed number of views of each sample."""
        dataset, there = getattr(loader, "dataset", None), views_of(loader)
        if there is not None:
            if self.options.views not in (None, there):
                raise InputError(
                    f"the training loader has {there} views and the teacher cache asks for {self.options.views}"
                )
            return loader
        if not isinstance(loader, DataLoader) or not transforms_of(dataset)[1]:
            return loader
        views = self.options.views or self._views_there() or min(DEFAULT_VIEWS, epochs)
        logger.info("the training samples are augmented in %d fixed views, one an epoch in turn", views)
        return _over(loader, _with_views(loader.dataset, views))

    def start_epoch(self, epoch: int) -> None:
        """Answer from now on with the view of an epoch, which is the epoch's number modulo the number of views."""
        self._epoch = epoch
        self._resident = {}

    def _views_there(self) -> int | None:
        folder = self._folder / "train" if self._folder is not None else None
        return TeacherCache(folder).views if folder is not None and folder.exists() else None

    # ---- answers

    def logits(self, loader: Any, ids: Tensor | None) -> Tensor | None:
        """The stored logits of a batch, on the device; None for a loader that was not asked about."""
        place = _place(loader)
        if place not in self._caches:
            return None
        if ids is None:
            raise InputError(_NO_IDS)
        cache = self._caches[place][1]
        view = self._epoch % cache.views
        if ids.device.type != "cpu":  # reading them back would stall every step
            if place not in self._resident:
                self._resident[place] = cache.on_device(view, ids.device)
            return self._resident[place](ids)
        found = cache.lookup(ids, view)
        return found.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else found

    def store(self, part: str, loader: Iterable[Any], num_classes: int) -> TeacherCache:
        """Ask the teacher about a loader's samples, unless the cache has its answers.

        Args:
            part: what the samples are called in the folder: ``train`` or ``held-out``.
            loader: batches ``(inputs, target, ids)`` that hold the same inputs on every pass.
            num_classes: C.

        Raises:
            InputError: for a loader without ids or with inputs that change, and for a stale cache.
        """
        with replayed(random_state(self.device)):  # a DataLoader draws a seed when it starts
            dataset = getattr(loader, "dataset", None)
            mapped = isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset)
            everything = _loader_of(loader, range(len(dataset))) if mapped else loader  # type: ignore[arg-type]
            samples = samples_of(dataset) if mapped else None
            if samples is None:
                samples = Samples(torch.cat([_ids_of(batch) for batch in everything]), None, None)
            ids, rows = _each_once(samples)
            source = everything if rows is None else _loader_of(loader, rows)
            _refuse_changing(_loader_of(loader, range(min(len(samples.ids), BATCH))) if mapped else loader)
            fixed, random = transforms_of(dataset) if mapped else ([], [])
            views = (views_of(loader) if part == "train" else None) or 1
            recognised = self._recognised(dataset, samples, [*fixed, *random])
            key = {
                "teacher": self._teacher or "",
                "precision": self.precision,
                "preprocessing": _listed(fixed),
                "augmentation": _listed(random),
                "samples": samples.whole or "by sample",
            }
            folder = (self._folder if self._folder is not None and recognised else self._temporary_folder()) / part
            if not folder.exists():
                logger.info("asking the teacher about %d samples in %d views: %s", len(ids), views, folder)
            cache = TeacherCache.write(
                folder,
                self._answers(source, views),
                key=key,
                ids=ids,
                digests=samples.digests if samples.digests is None or rows is None else samples.digests[rows],
                num_classes=num_classes,
                views=views,
                dtype=self.options.dtype or "fp16",
                top_k=self.options.top_k,
            )
            cache.check(key, self.options, num_classes, views)
            cache.check_samples(samples)
            self._caches[_place(loader)] = loader, cache
            return cache

    def adopt(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The loader, or where the answers for all its samples are there, one like it that gives the view of the epoch."""
        if not isinstance(loader, DataLoader) or _place(loader) in self._caches or views_of(loader) is not None:
            return loader
        self._caches.pop(self._adopted or 0, None)  # one at a time is kept
        samples, (fixed, random) = samples_of(loader.dataset), transforms_of(loader.dataset)
        for _, cache in list(self._caches.values()):
            same = (cache.key["preprocessing"], cache.key["augmentation"]) == (_listed(fixed), _listed(random))
            if same and samples is not None and samples.digests is not None and cache.holds(samples):
                other = _over(loader, _with_views(loader.dataset, cache.views)) if random else loader
                set_view(other, self._epoch % cache.views)
                self._adopted = _place(other)
                self._caches[self._adopted] = other, cache
                return other
        return loader

    def close(self) -> None:
        """Remove what was kept for one training only."""
        if self._temporary is not None:
            self._caches = {}
            self._temporary.cleanup()
            self._temporary = None

    @torch.no_grad()
    def _answers(self, loader: Any, views: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        for view in range(views):
            if views > 1:
                set_view(loader, view)
            for batch in loader:
                yield view, _ids_of(batch), self._ask(batch[0])
        if views > 1:
            set_view(loader, 0)

    def _temporary_folder(self) -> Path:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tgeokd-teacher-")
        return Path(self._temporary.name)

    def _recognised(self, dataset: Any, samples: Samples, transforms: list[str]) -> bool:
        """Whether a later training can tell that the answers are the ones it needs.

        Raises:
            InputError: where not, and a folder was asked for.
        """
        if self._teacher is None:
            reason = "a teacher that is no torch module cannot be told from another one"
        elif samples.digests is None and samples.whole is None:
            reason = f"the data set {type(dataset).__name__} has no fingerprint() to tell it from another one"
        elif any(" at 0x" in text for text in transforms):
            reason = f"the transform of the data set {type(dataset).__name__} has no repr that names its settings"
        else:
            return True
        if self.options.folder is not None:
            raise InputError(f"a teacher cache in a folder must be recognised later, and {reason}; set no folder")
        if self._folder is not None:
            logger.info("the teacher's predictions are kept for this training only: %s", reason)
        return False


_NO_IDS = (
    "cached teacher predictions are found by sample id: loaders must yield (inputs, target, ids), "
    "for example over ArrayDataset(inputs, target, ids); or set cache_teacher=False"
)


def _ids_of(batch: Any) -> Tensor:
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        raise InputError(_NO_IDS)
    ids: Tensor = batch[2].cpu()
    return ids


def _with_views(dataset: Dataset[Any], views: int) -> Dataset[Any]:
    if isinstance(dataset, Subset):
        return Subset(_with_views(dataset.dataset, views), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([_with_views(part, views) for part in dataset.datasets])
    if not transforms_of(dataset)[1]:
        return dataset
    if not hasattr(dataset, "with_views"):
        raise InputError(
            f"the data set {type(dataset).__name__} augments at random and has no with_views(views): a cached teacher would "
            "speak of other pixels than the student sees; use ArrayDataset, or cache_teacher=False"
        )
    other: Dataset[Any] = dataset.with_views(views)
    return other


def _place(loader: Any) -> int:
    return id(getattr(loader, "dataset", loader))


def _listed(transforms: list[str]) -> str:
    return ", ".join(transforms) or "none"


def _over(loader: DataLoader[Any], dataset: Dataset[Any]) -> DataLoader[Any]:
    """A loader like another, with its sampler, over a data set with the same rows."""
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {"persistent_workers": loader.persistent_workers, "prefetch_factor": loader.prefetch_factor}
    return BatchLoader(
        dataset,
        loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **workers,
    )


def _loader_of(loader: Any, rows: Sequence[int]) -> DataLoader[Any]:
    """Some rows of the loader's data set, in this order, fetched like the loader does."""
    return DataLoader(
        loader.dataset,
        getattr(loader, "batch_size", None) or BATCH,
        sampler=rows,
        collate_fn=getattr(loader, "collate_fn", None),
        num_workers=getattr(loader, "num_workers", 0) if len(rows) > BATCH else 0,
        worker_init_fn=getattr(loader, "worker_init_fn", None),
    )


def _each_once(samples: Samples) -> tuple[Tensor, list[int] | None]:
    """Ids without repetition, and the rows to ask about: the first of each id where equal ids are known to have equal inputs.

    None stands for all rows.
    """
    first, place = first_rows(samples.ids)
    if len(first) == len(samples.ids):
        return samples.ids, None
    if samples.digests is None:
        return samples.ids[first], None
    wrong = (samples.digests != samples.digests[first][place]).nonzero()
    if len(wrong):
        twice = int(samples.ids[int(wrong[0])])
        raise InputError(f"two samples with different inputs have the id {twice}: ids must name samples")
    rows = first.sort().values
    return samples.ids[rows], rows.tolist()


def _refuse_changing(loader: Iterable[Any]) -> None:
    """Fetch one batch twice: inputs that come out different are augmented at random, unknown to us."""
    first, second = (next(iter(loader), None) for _ in range(2))
    if first is None or second is None:
        raise InputError("the training loader is empty, or can be read only once")
    if not torch.equal(_ids_of(first), _ids_of(second)):
        return  # shuffled, by a loader whose data set cannot be asked
    if not _equal(first[0], second[0]):
        raise InputError(
            "the loader gives the same samples with other inputs each time, so a cached teacher would speak of other pixels "
            "than the student sees; use ArrayDataset with a transform that has view(inputs, ids, view), or cache_teacher=False"
        )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.allclose(first, second, rtol=0, atol=0, equal_nan=first.is_floating_point())
    if isinstance(first, dict):
        return all(_equal(value, second[key]) for key, value in first.items())
    if isinstance(first, tuple | list):
        return all(_equal(*pair) for pair in zip(first, second, strict=True))
    return True
