"""Stored logits as a teacher, found by sample id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from tgeokd.core.losses import logits_from_probs, to_class_logits
from tgeokd.core.model_call import class_probs, eval_mode, module_device, random_state, replayed
from tgeokd.data.batch import Batch
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.formats import read_predictions, write_predictions
from tgeokd.teachers.ids import IdIndex, check_repeats, first_rows, ids_of
from tgeokd.teachers.network import NetworkTeacher, as_teacher
from tgeokd.utils.errors import InputError


class StoredPredictions(Teacher):
    """A teacher's logits for M samples, looked up by sample id. The inputs of a batch are not used.

    Under random augmentation, the stored logits do not belong to the augmented inputs that the student sees.

    Args:
        logits: shape (M, C), (M, 1) or (M,); one logit ``z`` per sample stands for ``(0, z)``. The attribute ``stored_logits``
            holds them in float32, shape (M, C), on the CPU.
        ids: distinct integers in any order, shape (M,).

    Raises:
        InputError: for shapes that do not fit, no samples, an id that occurs twice, or a logit that is not finite.
    """

    num_classes: int

    def __init__(self, logits: Tensor, ids: Tensor) -> None:
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
    def from_file(cls, path: str | Path, *, num_classes: int | None = None) -> StoredPredictions:
        """Predictions from a file; an :class:`InputError` names it.

        Args:
            path: see :func:`~tgeokd.teachers.formats.read_predictions`. One number per sample is the logit, or the
                probability, of class 1 of two. A probability below 1.2e-38 is raised to that value.
            num_classes: C; None takes what the file holds.
        """
        ids, kind, values = read_predictions(path)
        try:
            if kind == "probs":
                values = logits_from_probs(class_probs(torch.clone, values))
            stored = cls(values, ids)
            if num_classes is not None and stored.num_classes != num_classes:
                raise InputError(f"holds predictions for {stored.num_classes} classes, but the task has {num_classes}")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return stored

    def save(self, path: str | Path) -> None:
        """Write ids and logits to an ``.npz``, ``.safetensors`` or ``.parquet`` file, in the order of ``ids``."""
        write_predictions(path, self.ids, self.stored_logits)

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
        return cls(every[rows], names[rows])
