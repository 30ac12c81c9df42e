"""One look at the data before training: class counts and the teacher's class means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgeokd.core.geometry import ClassMeans
from tgeokd.core.validation import check_validation_classes
from tgeokd.methods import Method
from tgeokd.teachers.base import Teacher
from tgeokd.training.batches import BatchReader
from tgeokd.training.parallel import ParallelContext
from tgeokd.utils.errors import InputError


@dataclass(frozen=True)
class Survey:
    """What a method needs to know of the data."""

    num_classes: int
    class_means: Tensor | None = None  # the teacher's mean prediction for each class, shape (C, C), where needed


def survey(
    method: Method,
    num_classes: int,
    train_loader: Iterable[Any],
    validation: Iterable[Any] | None,
    teacher: Teacher | None,
    reader: BatchReader,
    parallel: ParallelContext,
) -> Survey:
    """Read the data once, as far as a method needs it.

    Raises:
        InputError: for labels out of range, a validation set that lacks a class of the training set, and teacher logits that
            are not finite.
    """
    uses_validation = method.outer in ("holdout", "union")
    if not (uses_validation or method.needs_class_means):
        return Survey(num_classes)
    means = ClassMeans(num_classes)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for batch in reader.read_all(train_loader, "training loader"):
        if method.needs_class_means:
            assert teacher is not None
            logits = teacher.logits(batch)
            if not bool(torch.isfinite(logits).all()):
                raise InputError("the teacher's logits are NaN or infinite on the training set (before step 0)")
            means.update(logits.softmax(dim=-1), batch.target)
        counts += batch.target.bincount(minlength=num_classes).cpu()
    if uses_validation:
        assert validation is not None
        validation_counts = torch.zeros_like(counts)
        for batch in reader.read_all(validation, "validation loader"):
            validation_counts += batch.target.bincount(minlength=num_classes).cpu()
        check_validation_classes(parallel.all_reduce(counts), parallel.all_reduce(validation_counts))
    if not method.needs_class_means:
        return Survey(num_classes)
    means.reduce(parallel.all_reduce)
    return Survey(num_classes, means.compute())
