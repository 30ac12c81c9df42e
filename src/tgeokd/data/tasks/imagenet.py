"""`imagenet`: images in one folder per class under ``train/`` and ``val/``; ImageNet and data sets of the same layout."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision import transforms as T  # type: ignore[import-untyped]

from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.datasets import Joinable
from tgeokd.data.images.folders import (
    ClassFolders,
    Strings,
    class_folders,
    refuse_empty,
    say_what_was_found,
    unreadable,
)
from tgeokd.data.images.reader import read_rgb
from tgeokd.data.split import stratified_split
from tgeokd.data.tasks.registry import TASKS
from tgeokd.utils.errors import InputError

MEAN = (0.485, 0.456, 0.406)  # of the pretrained models of torchvision and timm
STD = (0.229, 0.224, 0.225)

logger = logging.getLogger(__name__)


class ImageFiles(Dataset[Any], Joinable):
    """Image files, read and decoded one by one: ``(image, target, id)``.

    The paths are one array: a list of objects would be copied into every worker process. ``target`` and ``ids`` are int64,
    shape (N,); the transform maps a PIL image in RGB to the input of a model.
    """

    def __init__(self, paths: Strings, target: Tensor, ids: Tensor, transform: Callable[[Any], Tensor]):
        self.paths, self.target, self.ids, self.transform = paths, target, ids, transform

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image = read_rgb(os.fsdecode(self.paths[index]))
        return self.transform(image), self.target[index], self.ids[index]

    def join(self, other: Dataset[Any]) -> Dataset[Any]:
        """These files followed by those of ``other``, all with this data set's transform."""
        if not isinstance(other, ImageFiles):
            return ConcatDataset([self, other])
        target, ids = torch.cat([self.target, other.target]), torch.cat([self.ids, other.ids])
        return ImageFiles(np.concatenate([self.paths, other.paths]), target, ids, self.transform)


@TASKS.register("imagenet")
def imagenet(
    *,
    data_dir: Path,
    seed: int = 0,
    held_out: int = 10000,
    classes: int | None = None,
    crop: int = 224,
    resize: int = 256,
    workers: int = 4,
    class_map: str | None = None,
    bad_files: Literal["error", "skip"] = "error",
) -> TaskData:
    """Images from ``train/CLASS/*`` and ``val/CLASS/*``. ``val`` is the test set, as is usual for ImageNet.

    Training: a random area of 8 to 100 % of the image scaled to ``crop``, and mirroring. Evaluation: the shorter side scaled
    to ``resize``, then a centre crop. Both are normalised with ImageNet's mean and standard deviation. An id is the position
    of the file in the order of classes and names; ``val`` follows ``train``.

    Args:
        data_dir: contains ``train`` and ``val``, or a folder ``imagenet`` that does.
        seed: seed of the validation split.
        held_out: size of the validation set, taken from ``train`` class by class.
        classes: number of classes to use, the first ones by name; null for all.
        crop: input size of the model, in pixels.
        resize: shorter side before the centre crop, in pixels.
        workers: worker processes that read images.
        class_map: a file of the data folder with the classes in the order of their indices, see
            :func:`~tgeokd.data.images.folders.class_folders`; by default the class folders in text order.
        bad_files: ``skip`` decodes every file before training and leaves out those that cannot be; ``error`` stops at one when
            it is read.
    """
    if not 1 <= crop <= resize:
        raise InputError(f"crop must lie in [1, resize], not {crop} with resize={resize}")
    if workers < 0:
        raise InputError(f"workers must be >= 0, not {workers}")
    root = next((place for place in (data_dir, data_dir / "imagenet") if (place / "train").is_dir()), None)
    if root is None:
        raise InputError(f"no images in {data_dir}: looked for train/CLASS/* there and in {data_dir / 'imagenet'}")
    order = None if class_map is None else data_dir / class_map
    images, val = class_folders(root / "train", order), class_folders(root / "val", order)
    if only_in_one := sorted(set(images.names) ^ set(val.names)):
        here, there = ("train", "val") if only_in_one[0] in images.names else ("val", "train")
        raise InputError(f"{root}: the class folder {only_in_one[0]!r} is in {here} but not in {there}")
    say_what_was_found(images)
    if bad_files == "skip":
        images, val = _readable(images), _readable(val)
    else:
        refuse_empty(images)
        refuse_empty(val)
    count = len(images.names) if classes is None else classes
    if not 2 <= count <= len(images.names):
        raise InputError(f"classes={count} must lie in [2, {len(images.names)}], the class folders of {root / 'train'}")
    names = images.names[:count]
    used = images.target[images.target < count]  # the first rows, because files are in the order of classes
    fit, held, _ = stratified_split(used, held_out=held_out, test=None, seed=seed, class_names=names)
    tested = np.flatnonzero(val.target < count)

    normalise = [T.ToTensor(), T.Normalize(MEAN, STD)]
    random = T.Compose([T.RandomResizedCrop(crop), T.RandomHorizontalFlip(), *normalise])
    plain = T.Compose([T.Resize(resize), T.CenterCrop(crop), *normalise])
    splits = (
        _select(images, fit, random),
        _select(images, held, plain),
        _select(val, tested, plain, first_id=len(images.target)),
    )
    rows = dict(zip(("train", "held_out", "test"), map(len, splits), strict=True))
    left_out = {"train": len(images.others), "val": len(val.others)}
    notes = {"rows": rows, "image_size": crop, "classes": count, "left_out": left_out}
    inputs = InputSpec("array", (3, crop, crop))
    return TaskData(*splits, count, inputs, class_names=names, notes=notes, workers=workers)


def _select(
    found: ClassFolders, rows: NDArray[np.int64], transform: Callable[[Any], Tensor], first_id: int = 0
) -> ImageFiles:
    target, ids = torch.from_numpy(found.target[rows]), torch.from_numpy(rows + first_id)
    return ImageFiles(found.paths[rows], target, ids, transform)


def _readable(found: ClassFolders) -> ClassFolders:
    """The files that can be decoded; the others are counted and the first is named."""
    damaged = unreadable(found.paths)
    if not damaged:
        return found
    logger.warning(
        "%s: %d unreadable images left out, first: %s", found.folder, len(damaged), next(iter(damaged.values()))
    )
    return found.keep(np.array([os.fsdecode(path) not in damaged for path in found.paths]))
