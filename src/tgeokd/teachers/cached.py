"""A teacher that is queried once per sample and view; training reads the stored logits."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tgeokd.core.model_call import random_state, replayed
from tgeokd.data.batch import Batch
from tgeokd.data.datasets import set_view, views_of
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.key import Samples, row_digests, samples_of, transforms_of
from tgeokd.teachers.cache.loaders import BATCH, cached_ids, check_deterministic, loader_of_rows, with_views
from tgeokd.teachers.cache.store import TeacherCache, TeacherCacheOptions, write_cache
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import user_path

logger = logging.getLogger(__name__)

DEFAULT_VIEWS = (
    4  # each costs one pass of the teacher and the space of its logits; more are closer to fresh augmentation
)


class CachedTeacher(Teacher):
    """Stores a teacher's logits for the loaders of a training run, and reads them from then on.

    Args:
        teacher: is queried once for each sample and view.
        options: how the logits are kept.
        folder: of the cache, where the options have none; None for a temporary folder.
        precision: in which the teacher computes.
        move: moves a batch to the teacher's device.
    """

    def __init__(
        self,
        teacher: Teacher,
        options: TeacherCacheOptions,
        folder: Path | None,
        *,
        precision: str,
        move: Callable[[Batch], Batch],
    ) -> None:
        self.teacher, self.options, self.precision = teacher, options, precision
        self.num_classes, self.class_names = teacher.num_classes, teacher.class_names
        self._move, self._fingerprint = move, teacher.fingerprint()
        self._folder = user_path(options.folder) if options.folder is not None else folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._splits: dict[int, _StoredSplit] = {}  # by the id of the data set, which the split keeps alive
        self._adopted: int | None = None
        self.epoch = 0

    def logits(self, batch: Batch) -> Tensor:
        """Logits of the wrapped teacher; see :meth:`of` for stored ones."""
        return self.teacher.logits(batch)

    def fingerprint(self) -> str | None:
        """That of the wrapped teacher."""
        return self._fingerprint

    def of(self, loader: Iterable[Any]) -> Teacher:
        """The stored logits for a loader's data set; the wrapped teacher where none are stored."""
        return self._splits.get(_dataset_id(loader), self.teacher)

    def start_epoch(self, epoch: int) -> None:
        """Read from now on the view of an epoch: the epoch's number modulo the number of views."""
        self.epoch = epoch

    def viewed(self, loader: Iterable[Any], epochs: int) -> Iterable[Any]:
        """The loader; where its data set augments at random, one like it over a fixed number of views of each sample."""
        existing, views = views_of(loader), self.options.views
        if existing is not None and views not in (None, existing):
            raise InputError(f"the training loader has {existing} views, and the teacher cache {views}")
        if existing is not None or not isinstance(loader, DataLoader) or not transforms_of(loader.dataset)[1]:
            return loader
        if views is None:
            stored = self._folder is not None and (self._folder / "train").exists()
            views = TeacherCache(f"{self._folder}/train").views if stored else min(DEFAULT_VIEWS, epochs)
        logger.info("the training samples are augmented in %d fixed views, one per epoch in turn", views)
        return with_views(loader, views)

    def store(self, split: str, loader: Iterable[Any], num_classes: int) -> TeacherCache:
        """Query the teacher for a loader's samples, unless the cache has their logits.

        Args:
            split: ``train``, or ``held-out`` for the validation set; a folder of the cache.
            loader: yields batches with ids, and the same inputs on every pass.
            num_classes: C.
        """
        device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
        with replayed(random_state(device)):  # a DataLoader draws a seed when it starts
            dataset = getattr(loader, "dataset", None)
            by_row = isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset)
            whole = loader_of_rows(loader, range(len(dataset))) if by_row else loader  # type: ignore[arg-type]
            samples = samples_of(dataset) if by_row else None
            if samples is None:
                samples = _samples_read(whole)
            distinct, rows = samples.distinct()
            source = whole if rows is None else loader_of_rows(loader, rows)
            check_deterministic(loader_of_rows(loader, range(min(len(samples.ids), BATCH))) if by_row else loader)
            fixed, random = transforms_of(dataset) if by_row else ([], [])
            views = (views_of(loader) if split == "train" else None) or 1
            recognisable = self._recognisable(dataset, samples, [*fixed, *random])
            key = {
                "teacher": self._fingerprint or "",
                "precision": self.precision,
                "preprocessing": _listed(fixed),
                "augmentation": _listed(random),
                "samples": samples.whole or "by sample",
            }
            if self._folder is None or not recognisable:
                self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="tgeokd-teacher-")
                folder = Path(self._temporary.name, split)
            else:
                folder = self._folder / split
            if not folder.exists():
                logger.info("querying the teacher for %d samples in %d views: %s", len(distinct.ids), views, folder)
            predictions = self._query(source, views)
            cache = write_cache(folder, predictions, distinct, key, num_classes, views, self.options)
            cache.check(key, self.options, num_classes, views)
            cache.check_samples(samples)
            self._splits[_dataset_id(loader)] = _StoredSplit(self, loader, cache)
            return cache

    def adopt(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The loader; where the logits of all its samples are stored, one like it that yields the view of the epoch."""
        if not isinstance(loader, DataLoader) or _dataset_id(loader) in self._splits or views_of(loader) is not None:
            return loader
        self._splits.pop(self._adopted or 0, None)  # only the latest is kept
        samples, (fixed, random) = samples_of(loader.dataset), transforms_of(loader.dataset)
        if samples is None or samples.digests is None:
            return loader
        for cache in [split.cache for split in self._splits.values()]:
            same = (cache.key["preprocessing"], cache.key["augmentation"]) == (_listed(fixed), _listed(random))
            if same and cache.missing(samples) is None:
                other = with_views(loader, cache.views) if random else loader
                set_view(other, self.epoch % cache.views)
                self._adopted = _dataset_id(other)
                self._splits[self._adopted] = _StoredSplit(self, other, cache)
                return other
        return loader

    def close(self) -> None:
        """Remove logits that were stored for this training run only."""
        if self._temporary is not None:
            self._splits = {}
            self._temporary.cleanup()
            self._temporary = None

    @torch.no_grad()
    def _query(self, loader: Any, views: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        for view in range(views):
            if views > 1:
                set_view(loader, view)
            for item in loader:
                batch = Batch.parse(item)
                yield view, cached_ids(batch).cpu(), self.teacher.logits(self._move(batch))
        if views > 1:
            set_view(loader, 0)

    def _recognisable(self, dataset: Any, samples: Samples, transforms: list[str]) -> bool:
        """Whether a later run can determine that the stored logits are the ones it needs; a must with ``options.folder``."""
        if self._fingerprint is None:
            reason = "a teacher that is not a torch module has no fingerprint"
        elif samples.digests is None and samples.whole is None:
            reason = f"the data set of type {type(dataset).__name__} has no fingerprint()"
        elif any(" at 0x" in text for text in transforms):
            reason = f"a transform has no repr with its settings: {', '.join(transforms)}"
        else:
            return True
        if self.options.folder is not None:
            raise InputError(f"a later run could not recognise the teacher cache, since {reason}; set no folder")
        if self._folder is not None:
            logger.info("the teacher's logits are stored for this training run only: %s", reason)
        return False


class _StoredSplit(Teacher):
    """Stored logits for the batches of one loader, in the view of the cached teacher's epoch."""

    def __init__(self, cached: CachedTeacher, loader: Iterable[Any], cache: TeacherCache) -> None:
        self.cached, self.loader, self.cache = cached, loader, cache
        self.num_classes, self.class_names = cache.num_classes, cached.class_names
        self._on_device: tuple[int, Callable[[Tensor], Tensor]] | None = None  # view and lookup

    def of(self, loader: Iterable[Any]) -> Teacher:
        return self.cached.of(loader)

    def start_epoch(self, epoch: int) -> None:
        self.cached.start_epoch(epoch)

    def logits(self, batch: Batch) -> Tensor:
        ids, device, view = cached_ids(batch), batch.target.device, self.cached.epoch % self.cache.views
        if ids.device.type != "cpu":  # copying them to the CPU would wait for the accelerator in every step
            if self._on_device is None or self._on_device[0] != view:
                self._on_device = view, self.cache.on_device(view, ids.device)
            return self._on_device[1](ids)
        found = self.cache.lookup(ids, view)
        return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def _dataset_id(loader: Any) -> int:
    return id(getattr(loader, "dataset", loader))


def _listed(transforms: list[str]) -> str:
    return ", ".join(transforms) or "none"


def _samples_read(loader: Iterable[Any]) -> Samples:
    """The ids of a loader's samples, for which all batches are read. Equal ids must have equal inputs."""
    ids, digests = [], []
    for batch in map(Batch.parse, loader):
        ids.append(cached_ids(batch).cpu())
        tensors = batch.inputs if isinstance(batch.inputs, tuple | list) else [batch.inputs]
        if all(isinstance(tensor, Tensor) for tensor in tensors):
            digests.append(row_digests(tensors))
    names = torch.cat(ids)
    if len(digests) == len(ids):
        Samples(names, torch.cat(digests), None).distinct()
        names = names.unique()  # what is the same sample needs one row
    return Samples(names, None, None)
