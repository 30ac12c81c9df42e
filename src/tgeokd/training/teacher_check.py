"""Comparing the teacher with the labels before training, and refusing one that cannot be the teacher of these samples."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tgeokd.data.batch import Batch
from tgeokd.data.datasets import parts_of
from tgeokd.data.loaders import order_of
from tgeokd.teachers.agreement import better_order, better_shift, lowest_classes, measure, percent
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.key import hashes_of
from tgeokd.teachers.network import NetworkTeacher
from tgeokd.teachers.proba import ProbaTeacher
from tgeokd.teachers.stored import StoredPredictions
from tgeokd.training.batches import BatchReader
from tgeokd.training.parallel import ParallelContext
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)

KEPT = 200_000  # samples of a part that are compared at most
QUERIED = 2048  # samples for which a teacher is queried for the comparison alone
UNCLEAR = 100  # samples from which a teacher below the largest class is worth a warning

PARTS = ("training", "validation")
ANY_SAMPLE = (
    NetworkTeacher,
    ProbaTeacher,
    StoredPredictions,
)  # can be asked about samples without training on them

Part = tuple[Tensor, Tensor, Tensor | None]  # most probable classes, labels, ids; each of shape (N,)


class TeacherCheck:
    """Gathers what the teacher predicts for training and validation samples, and compares it with their labels.

    Args:
        teacher: that predicts.
        num_classes: C.
    """

    def __init__(self, teacher: Teacher, num_classes: int) -> None:
        self.teacher, self.num_classes = teacher, num_classes
        self._parts: dict[str, list[Part]] = {}
        self._hashes: dict[str, tuple[Tensor, Tensor]] = {}
        self._orders: dict[str, str] = {}
        self._count = dict.fromkeys(PARTS, 0)

    def add(self, part: str, batch: Batch, logits: Tensor) -> None:
        """Note the teacher's logits, shape (N, C), of a batch of ``"training"`` or ``"validation"`` samples."""
        if self._count[part] < KEPT:
            self._count[part] += len(batch)
            ids = None if batch.ids is None else batch.ids.cpu().long()
            self._parts.setdefault(part, []).append((logits.argmax(dim=-1).cpu(), batch.target.cpu(), ids))

    def sample(self, part: str, loader: Iterable[Any], teacher: Teacher, reader: BatchReader) -> None:
        """Query the teacher for some samples of a part, unless :meth:`add` was given some."""
        if self._count[part] or (part != "training" and not isinstance(teacher, ANY_SAMPLE)):
            return
        teacher = teacher.uncompiled() if isinstance(teacher, NetworkTeacher) else teacher
        generator, seen = order_of(loader), 0
        state = None if generator is None else generator.get_state()
        for batch in reader.read_all(loader, f"{part} loader"):
            seen += len(batch)
            lacks = isinstance(teacher, StoredPredictions) and (
                batch.ids is None or not bool(teacher.has(batch.ids).all())
            )
            logits = None if lacks else teacher.logits(batch)
            if logits is not None and bool(logits.isfinite().all()):  # otherwise the training itself says so
                self.add(part, batch, logits)
            if seen >= QUERIED:
                break
        if generator is not None and state is not None:
            generator.set_state(state)

    def finish(self, parallel: ParallelContext, *, allow: bool = False) -> None:
        """Compare, with the samples of all processes.

        Raises:
            InputError: for a teacher that fits the labels far better with its classes in another order or its rows shifted, or
                has nothing in common with the labels; a warning with ``allow``.
        """
        for part in PARTS:
            batches = [batch for share in parallel.gather_objects(self._parts.get(part, [])) for batch in share]
            if not batches:
                continue
            predicted, target = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
            known = [ids for _, _, ids in batches if ids is not None]
            ids = torch.cat(known) if len(known) == len(batches) else None
            text = self._other_samples(part, target, ids) or self._fault(part, predicted, target, ids)
            if text is None:
                continue
            if not allow:
                way_out = "allow_bad_teacher=True, or --set allow_bad_teacher=true on the command line"
                raise InputError(f"{text}. To train with it all the same: {way_out}")
            logger.warning("%s (allow_bad_teacher)", text)

    def look_at(self, part: str, loader: Iterable[Any] | None) -> None:
        """Note what the data set of a part says of its samples and classes, as far as the teacher says something of them too.

        The classes are those of a data set with ``classes``, as those of torchvision have.
        """
        dataset, teacher = getattr(loader, "dataset", None), self.teacher
        names = [list(given) for each in parts_of(dataset) if (given := getattr(each, "classes", None))]
        own = list(teacher.class_names)
        if own and names and own != names[0] and sorted(own) == sorted(map(str, names[0])):
            self._orders[part] = (
                f"the teacher's classes are in the order {_some(own)}, those of the {part} loader {_some(names[0])}"
            )
        if loader is not None and isinstance(teacher, StoredPredictions) and teacher.hashes is not None:
            hashes = hashes_of(dataset)
            if hashes is None:
                logger.warning(
                    "the hashes of the teacher's predictions are not compared: the %s samples have none", part
                )
            else:
                self._hashes[part] = hashes

    def _other_samples(self, part: str, target: Tensor, ids: Tensor | None) -> str | None:
        """What the names of classes, and labels and hashes that are stored with predictions, say against the teacher."""
        if part in self._orders:
            return f"{self._orders[part]}; give the teacher class_names in this order"
        if not isinstance(self.teacher, StoredPredictions) or ids is None:
            return None
        try:
            self.teacher.check_labels(ids, target, f"{part} loader")
            if part in self._hashes:
                self.teacher.check_hashes(*self._hashes[part], f"{part} loader")
        except InputError as error:
            return str(error)
        return None

    def _fault(self, part: str, predicted: Tensor, target: Tensor, ids: Tensor | None) -> str | None:
        """What is wrong with the teacher on the samples of a part."""
        agreement = measure(predicted, target, self.num_classes)
        found = f"the teacher agrees with {percent(agreement.share)} of {agreement.samples:,} {part} labels"
        found += f" (chance {percent(agreement.chance)}, the largest class alone {percent(agreement.largest)})"
        order = better_order(predicted, target, self.num_classes)
        shift = better_shift(*self._rows(predicted, ids), target)
        explanations = [each for each in (order, shift) if each is not None]
        if explanations:  # where labels follow in turns, a shift is nearly an order
            return f"{found}; {max(explanations, key=lambda each: each.share)}"
        if agreement.nothing_in_common:
            return f"{found}: it has nothing in common with them, as if it belonged to other samples or other inputs"
        below = agreement.share < agreement.largest - 0.01 and agreement.samples >= UNCLEAR
        lowest = lowest_classes(agreement, self.teacher.class_names)
        logger.log(logging.WARNING if below else logging.INFO, "%s; lowest by class: %s", found, lowest)
        return None

    def _rows(self, predicted: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Numbered rows of predictions, and the row of each sample: of a file, or by sample id, or as they were read."""
        if ids is None:
            rows = torch.arange(len(predicted))
            return rows, predicted, rows
        if isinstance(self.teacher, StoredPredictions):
            rows, stored, wanted = self.teacher.in_order(ids)
            # The rows of this part alone: in a file sorted by class, the prediction for a neighbour that the teacher was
            # trained on is a better guess of a validation label than its own.
            own = torch.isin(rows, wanted)
            return rows[own], stored[own], wanted
        rows, place = ids.unique(return_inverse=True)
        return rows, torch.zeros_like(rows).scatter_(0, place, predicted), ids


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
