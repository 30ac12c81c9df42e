"""Stored logits as a teacher, found by sample id."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from tgeokd.core.losses import logits_from_probs, to_class_logits
from tgeokd.core.model_call import class_probs, eval_mode, module_device, random_state, replayed
from tgeokd.core.validation import validate_labels
from tgeokd.data.batch import INTEGER_TYPES, Batch
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.formats import read_predictions, write_predictions
from tgeokd.teachers.ids import IdIndex, check_repeats, first_rows, ids_of
from tgeokd.teachers.names import order_by_name
from tgeokd.teachers.network import NetworkTeacher, as_teacher
from tgeokd.teachers.proba import ProbaTeacher, fitted_columns
from tgeokd.utils.errors import InputError, check_names

logger = logging.getLogger(__name__)

FORGOTTEN = -1  # in place of a label


class StoredPredictions(Teacher):
    """A teacher's logits for M samples, looked up by sample id. The inputs of a batch are not used.

    Under random augmentation, the stored logits do not belong to the augmented inputs that the student sees.

    Args:
        logits: shape (M, C), (M, 1) or (M,); one logit ``z`` per sample stands for ``(0, z)``. The attribute ``stored_logits``
            holds them in float32, shape (M, C), on the CPU.
        ids: distinct integers in any order, shape (M,).
        class_names: names of the C classes, if known.
        labels: class index of each sample, int64, shape (M,), if known. Training is refused where a loader has another one.
        hashes: :func:`~tgeokd.teachers.row_digests` of the inputs, int64, shape (M,), if known; compared likewise.

    Raises:
        InputError: for shapes that do not fit, no samples, an id that occurs twice, or a logit that is not finite.
    """

    num_classes: int

    def __init__(
        self,
        logits: Tensor,
        ids: Tensor,
        *,
        class_names: Sequence[str] = (),
        labels: Tensor | None = None,
        hashes: Tensor | None = None,
    ) -> None:
        if ids.ndim == 1 and (logits.ndim == 0 or len(logits) != len(ids)):
            raise InputError(f"predictions of shape {tuple(logits.shape)} do not fit {len(ids)} ids")
        self._index = IdIndex(ids)
        self.ids = self._index.ids
        self.stored_logits = to_class_logits(logits.detach().to("cpu", torch.float32))
        self.num_classes = self.stored_logits.shape[-1]
        wrong = (~self.stored_logits.isfinite().all(dim=-1)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise InputError(f"the teacher's logits of row {row} (sample {int(self.ids[row])}) are NaN or infinite")
        if class_names and len(class_names) != self.num_classes:
            raise InputError(f"{len(class_names)} class names for {self.num_classes} classes")
        for name, tensor in (("labels", labels), ("hashes", hashes)):
            if tensor is not None and (tensor.shape != ids.shape or tensor.dtype not in INTEGER_TYPES):
                given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise InputError(f"{name} must be integers, one for each of the {len(ids)} samples, not {given}")
        if labels is not None:
            validate_labels(labels.long(), self.num_classes, "teacher's predictions")
        self.class_names = tuple(class_names)
        self.labels = None if labels is None else labels.cpu().long()
        self.hashes = None if hashes is None else hashes.cpu().long()

    def __len__(self) -> int:
        return len(self.ids)

    def logits(self, batch: Batch) -> Tensor:
        """Stored logits of a batch with ids, shape (N, C), float32, on the device of its target."""
        return self.lookup(ids_of(batch, "stored teacher predictions are found").cpu()).to(batch.target.device)

    def lookup(self, ids: Tensor) -> Tensor:
        """Stored logits of samples, shape (N, C), float32, on the device of ``ids``.

        Args:
            ids: integers, shape (N,), in any order, repeats allowed; an :class:`InputError` for one that is not stored.
        """
        return self.stored_logits[self._index.rows(ids)].to(ids.device)

    def has(self, ids: Tensor) -> Tensor:
        """Which samples are stored: bool, shape (N,), on the CPU."""
        return torch.isin(ids.cpu().long(), self.ids)

    def forget_labels(self, ids: Tensor) -> None:
        """Do not compare the labels of some samples."""
        if self.labels is not None:
            self.labels[self._index.rows(ids)] = FORGOTTEN

    def check_labels(self, ids: Tensor, target: Tensor, what: str) -> None:
        """Raise :class:`InputError` where stored labels differ from those of samples, both int64, shape (N,), on the CPU."""
        self._compare(self.labels, ids, target, what, "label", "labels that are changed on purpose, store none")

    def check_hashes(self, ids: Tensor, hashes: Tensor, what: str) -> None:
        """The same for hashes of the inputs, see :func:`~tgeokd.teachers.row_digests`."""
        self._compare(self.hashes, ids, hashes, what, "hash", "inputs that are changed on purpose, store none")

    def _compare(self, stored: Tensor | None, ids: Tensor, given: Tensor, what: str, name: str, exception: str) -> None:
        if stored is None:
            return
        known = self.has(ids)
        ids, given = ids[known], given[known]
        expected = stored[self._index.rows(ids)]
        wrong = ((expected != given) & (expected != FORGOTTEN)).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"the teacher's predictions are of other samples: sample {int(ids[first])} has the {name} "
                f"{int(expected[first])} there and {int(given[first])} in the {what}, {len(wrong):,} of {len(ids):,} samples "
                f"differ; for {exception}"
            )

    def in_order(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers 0 to M - 1 of the stored samples in the order of their ids, their most probable classes, and the numbers of
        some samples, shape (N,).
        """
        place = torch.searchsorted(self._index.ascending, ids.cpu().long())
        return torch.arange(len(self)), self.stored_logits.argmax(dim=-1)[self._index.order], place

    def fingerprint(self) -> str:
        """A hash of the ids and the logits."""
        digest = hashlib.sha256(f"stored predictions {tuple(self.stored_logits.shape)}".encode())
        for tensor in (self.ids, self.stored_logits):
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        return digest.hexdigest()

    @classmethod
    def from_file(
        cls, path: str | Path, *, num_classes: int | None = None, class_names: Sequence[str] = ()
    ) -> StoredPredictions:
        """Predictions from a file; an :class:`InputError` names it.

        Args:
            path: see :func:`~tgeokd.teachers.formats.read_predictions`. One number per sample is the logit, or the
                probability, of class 1 of two. A probability below 1.2e-38 is raised to that value.
            num_classes: C; None takes what the file holds.
            class_names: names of the classes in the order of the labels. Where the file has names too, its classes are put
                into this order, which is logged.
        """
        found = read_predictions(path)
        try:
            logits = to_class_logits(found.values) if found.kind == "logits" else _from_probs(found.values)
            if found.class_names and len(found.class_names) != logits.shape[-1]:
                raise InputError(f"holds {len(found.class_names)} class names for {logits.shape[-1]} classes")
            labels = _class_indices(found.labels, found.class_names or class_names)
            order = order_by_name(found.class_names, class_names, str(path))
            names = found.class_names if order is None else class_names
            if order is not None:
                logits = logits[:, order]
                labels = None if labels is None else torch.tensor(order).argsort()[labels]
            stored = cls(logits, found.ids, class_names=names, labels=labels, hashes=found.hashes)
            if num_classes is not None and stored.num_classes != num_classes:
                raise InputError(f"holds predictions for {stored.num_classes} classes, but the task has {num_classes}")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return stored

    def save(self, path: str | Path) -> None:
        """Write everything to an ``.npz``, ``.safetensors`` or ``.parquet`` file, in the order of ``ids``."""
        further: dict[str, Any] = {"labels": self.labels, "hashes": self.hashes, "class_names": self.class_names}
        write_predictions(path, self.ids, self.stored_logits, **further)

    @classmethod
    def from_teacher(cls, teacher: Any, *loaders: Iterable[Any]) -> StoredPredictions:
        """Query any teacher once for every sample.

        Args:
            teacher: see :func:`~tgeokd.teachers.network.as_teacher`. A module is in eval mode meanwhile, and inputs are moved
                to its device.
            *loaders: yield batches with ids, without augmentation. A sample may occur more than once, with the same logits.
        """
        queried = as_teacher(teacher)
        # a callable that is not a module has no mode, and gets its inputs on their device
        model = queried.model if isinstance(queried, NetworkTeacher) else None
        module = model if isinstance(model, nn.Module) else nn.Identity()
        device = module_device(module)
        logits, ids = [], []
        with (
            replayed(random_state(device)),
            eval_mode(module),
            torch.no_grad(),
        ):  # a DataLoader draws a seed when it starts
            for batch in map(Batch.parse, chain(*loaders)):
                ids.append(ids_of(batch, "teacher predictions are stored").cpu())
                if module is model:
                    batch = Batch(move_data_to_device(batch.inputs, device), batch.target, batch.ids)
                logits.append(queried.logits(batch).cpu())
        if not logits:
            raise InputError("the loaders from which to store the teacher's predictions hold no samples")
        every, names = torch.cat(logits), torch.cat(ids)
        rows, first = first_rows(names)
        if len(rows) < len(names):
            check_repeats(names, every, every[first])
        return cls(every[rows], names[rows], class_names=queried.class_names)

    @classmethod
    def from_classifier(
        cls, classifier: Any, frame: Any, ids: Tensor | None = None, *, class_names: Sequence[str] = ()
    ) -> StoredPredictions:
        """Predictions of a classifier that was fitted on the raw columns of a table, which it gets by name.

        Args:
            classifier: has ``predict_proba``, ``classes_`` and ``feature_names_in_``.
            frame: a polars or pandas table of M rows with these columns, among others, in any order.
            ids: of the samples in its rows, integers, shape (M,); by default 0 to M - 1.
            class_names: names of the classes in the order of the labels, where ``classes_`` are names.
        """
        columns = fitted_columns(classifier)
        if not columns:
            raise InputError(f"the teacher {type(classifier).__name__} has no feature_names_in_: fit it on a table")
        check_names("column of the table", columns, list(frame.columns))
        teacher = ProbaTeacher(classifier, class_names=class_names, feature_names=columns)
        ids = torch.arange(len(frame)) if ids is None else ids
        return cls(teacher.of_columns(frame[list(columns)]), ids, class_names=teacher.class_names)


def _from_probs(values: Tensor) -> Tensor:
    """Logits of one or C probabilities for each sample."""
    return logits_from_probs(class_probs(torch.clone, values))


def _class_indices(labels: Tensor | list[str] | None, class_names: Sequence[str]) -> Tensor | None:
    """Labels as class indices in the order of the names: texts are names, numbers are indices already."""
    if isinstance(labels, list) and not class_names:
        logger.warning("the labels of the teacher's predictions are text and not compared: give class_names")
        return None
    if isinstance(labels, list):
        check_names("class", dict.fromkeys(labels), class_names)
        places = {name: place for place, name in enumerate(class_names)}
        return torch.tensor([places[name] for name in labels], dtype=torch.int64)
    if labels is not None and class_names:
        validate_labels(labels.long(), len(class_names), "predictions")
    return labels
