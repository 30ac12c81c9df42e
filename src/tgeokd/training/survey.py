"""Reading the data once before training: class counts, class means, wrong labels, and which samples are validation samples."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgeokd.core.geometry.class_means import ClassMeans
from tgeokd.core.label_noise import CalibrationSample, LabelNoise, LabelNoiseFit
from tgeokd.core.model_call import random_state, replayed
from tgeokd.core.validation import check_validation_classes
from tgeokd.data.batch import Batch
from tgeokd.data.loaders import numbered_ids
from tgeokd.methods import Method
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.key import check_distinct
from tgeokd.teachers.stored import StoredPredictions
from tgeokd.training.batches import BatchReader
from tgeokd.training.blame import blame_inputs, blame_logits
from tgeokd.training.parallel import ParallelContext
from tgeokd.training.teacher_check import TeacherCheck

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What a method needs to know of the data."""

    num_classes: int
    class_means: Tensor | None = None  # the teacher's mean prediction for each class, shape (C, C), where needed
    label_noise: dict[str, Tensor] | None = None  # the fields of a LabelNoise, where needed
    validation_ids: Tensor | None = (
        None  # sorted, int64, of the validation samples among the training samples, where known
    )

    @property
    def noise(self) -> LabelNoise | None:
        """The model of wrong labels."""
        return None if self.label_noise is None else LabelNoise(**self.label_noise)


def survey(
    method: Method,
    num_classes: int,
    train_loader: Iterable[Any],
    validation: Iterable[Any] | None,
    teacher: Teacher | None,
    reader: BatchReader,
    parallel: ParallelContext,
    *,
    validation_teacher: Teacher | None = None,
    allow_bad_teacher: bool = False,
) -> Survey:
    """Read the data once, as far as a method needs it, and compare the teacher with the labels.

    Raises:
        InputError: for labels out of range, a validation set that lacks a class of the training set, teacher logits that are
            not finite, and a teacher that cannot be one of these samples, see :class:`TeacherCheck`.
    """
    if isinstance(teacher, StoredPredictions):
        check_distinct(train_loader)
    check = TeacherCheck(teacher, num_classes) if teacher is not None and method.needs_teacher else None
    found = _survey(
        *(method, num_classes, train_loader, validation, teacher, reader, parallel), validation_teacher, check
    )
    if check is not None and teacher is not None:
        with replayed(random_state(reader.device)):  # what follows is the same with and without the comparison
            check.sample("training", train_loader, teacher, reader)
            if validation is not None and validation_teacher is teacher:  # not one that a cache was to replace
                check.sample("validation", validation, teacher, reader)
        for part, loader in (("training", train_loader), ("validation", validation)):
            check.look_at(part, loader)
        check.finish(parallel, allow=allow_bad_teacher)
    return found


def _survey(
    method: Method,
    num_classes: int,
    train_loader: Iterable[Any],
    validation: Iterable[Any] | None,
    teacher: Teacher | None,
    reader: BatchReader,
    parallel: ParallelContext,
    validation_teacher: Teacher | None,
    check: TeacherCheck | None,
) -> Survey:
    """Read the data as far as the method needs it; ``check`` is given all predictions of the teacher."""
    uses_validation = method.outer in ("holdout", "union")
    if not (uses_validation or method.needs_class_means or method.needs_label_noise):
        return Survey(num_classes)
    fit = LabelNoiseFit(num_classes) if method.needs_label_noise else None
    validation_counts, validation_ids = torch.zeros(num_classes, dtype=torch.int64), None
    if uses_validation:
        assert validation is not None
        sample, ids = CalibrationSample(num_classes, parallel.rank), []
        for batch in reader.read_all(validation, "validation loader"):
            validation_counts += batch.target.bincount(minlength=num_classes).cpu()
            ids.append(batch.ids)
            if fit is not None:
                assert validation_teacher is not None
                logits = validation_teacher.logits(batch).float()
                _check_finite(batch, logits, "validation loader, before step 0")
                sample.add(logits, batch.target)
                if check is not None:
                    check.add("validation", batch, logits)
        if fit is not None:
            fit.calibrate(parallel.gather_objects(sample))  # the same calibration in every process
        known = [each.cpu() for each in ids if each is not None]
        validation_ids = torch.cat(known).long().sort().values if len(known) == len(ids) else numbered_ids(train_loader)
    means = ClassMeans(num_classes)
    counts, recognised = torch.zeros(num_classes, dtype=torch.int64), 0
    for batch in reader.read_all(train_loader, "training loader"):
        if method.needs_class_means or fit is not None:
            assert teacher is not None
            predicted = teacher.logits(batch)
            _check_finite(batch, predicted, "training loader, before step 0")
            if check is not None:
                check.add("training", batch, predicted)
            if method.needs_class_means:
                means.update(predicted.softmax(dim=-1), batch.target)
            if fit is not None:
                fit.update(predicted, batch.target)
        counts += batch.target.bincount(minlength=num_classes).cpu()
        if validation_ids is not None and batch.ids is not None:
            recognised += int(is_among(batch.ids.cpu(), validation_ids).sum())
    if uses_validation:
        check_validation_classes(parallel.all_reduce(counts), parallel.all_reduce(validation_counts))
        validation_ids = _usable(validation_ids, recognised, method)
    if method.needs_class_means:
        means.reduce(parallel.all_reduce)
    if fit is not None:
        fit.reduce(parallel.all_reduce)
    return Survey(
        num_classes,
        means.compute() if method.needs_class_means else None,
        None if fit is None else dict(vars(fit.compute())),
        validation_ids,
    )


def _check_finite(batch: Batch, teacher_logits: Tensor, where: str) -> None:
    if not bool(torch.isfinite(teacher_logits).all()):
        blame_inputs(batch.inputs, batch.ids, where)
        blame_logits("teacher", teacher_logits, batch.ids, where)


def is_among(ids: Tensor, sorted_ids: Tensor) -> Tensor:
    """Which ids, integers, shape (N,), are among others, sorted, on the same device, shape (M,), M >= 1: bool, shape (N,)."""
    ids = ids.to(sorted_ids.dtype)
    places = torch.searchsorted(sorted_ids, ids).clamp_(max=len(sorted_ids) - 1)
    return sorted_ids.index_select(0, places) == ids


def _usable(validation_ids: Tensor | None, recognised: int, method: Method) -> Tensor | None:
    """The validation ids where each stands for one training sample; otherwise None, with a line that says why."""
    if method.outer != "union" or not method.needs_label_noise:
        return None
    if validation_ids is None:
        logger.info("validation samples are not recognised among the training samples: batches have no sample ids")
    elif recognised not in (0, len(validation_ids)):
        logger.warning(
            "%d training samples have the %d ids of validation samples, so these are not recognised; give each its own id",
            *(recognised, len(validation_ids)),
        )
    elif recognised:
        return validation_ids
    return None
