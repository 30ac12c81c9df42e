"""Out-of-fold predictions: of every training sample by a teacher that was trained without it."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from sklearn.model_selection import StratifiedKFold

from tgeokd.data import TaskData
from tgeokd.data.datasets import subset, with_transform_of
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)


WHOLE = "all-folds"  # name of the training on all samples


def out_of_fold(train: Callable[[TaskData, str], Any], data: TaskData, folds: int, *, seed: int) -> StoredPredictions:
    """Predictions of all samples, of training samples without augmentation.

    The training samples are divided into ``folds`` parts with equal class frequencies. Those of a part are predicted by a
    teacher trained on the other parts, those of the validation and test set by a teacher trained on all. A teacher that has
    memorised wrong labels says nothing about them; one that has not seen them does.

    Args:
        train: trains a teacher on the training set of the data that it is given; the second argument names the training.
        data: a task with sample ids.
        folds: at least 2.
        seed: of the division.

    Raises:
        InputError: for a class with fewer training samples than folds.
    """
    target = torch.cat([batch[1] for batch in data.ordered_loader(data.train)])
    counts = target.bincount(minlength=data.num_classes)
    rare = int(torch.where(counts > 0, counts, len(target)).argmin())
    if counts[rare] < folds:
        name = repr(data.class_names[rare]) if data.class_names else str(rare)
        raise InputError(
            f"teacher.folds={folds} needs {folds} training samples of every class, and class {name} has {int(counts[rare])}"
        )
    teacher = train(data, WHOLE)
    stored = [StoredPredictions.from_teacher(teacher, *map(data.ordered_loader, (data.held_out, data.test)))]
    plain = with_transform_of(data.train, data.held_out)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(target, target)
    for fold, (others, part) in enumerate(splits, start=1):
        logger.info("teacher without fold %d of %d", fold, folds)
        teacher = train(
            dataclasses.replace(data, train=subset(data.train, others.tolist()), corrupted=None), f"fold-{fold}"
        )
        stored.append(StoredPredictions.from_teacher(teacher, data.ordered_loader(subset(plain, part.tolist()))))
    return StoredPredictions(torch.cat([s.stored_logits for s in stored]), torch.cat([s.ids for s in stored]))
