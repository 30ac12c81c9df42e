"""A teacher that has already spoken: its logits, found by the ids of the samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from tgeokd.core.losses import logits_from_probs, to_class_logits
from tgeokd.core.model_call import class_logits, eval_mode, module_device, random_state, replayed
from tgeokd.teachers.formats import read_predictions, write_predictions
from tgeokd.teachers.ids import IdIndex, first_rows
from tgeokd.utils.errors import InputError

__all__ = ["StoredPredictions"]


class StoredPredictions:
    """A teacher's logits for M samples, asked by sample id rather than by inputs.

    Under random augmentation the stored logits belong to the sample as it was when they were made, without this epoch's
    augmentation: the student then sees a crop or a flip that the teacher did not. A module as teacher sees the same inputs.

    Args:
        logits: shape (M, C), (M, 1) or (M,); one logit ``z`` a sample stands for ``(0, z)``. Kept in float32 on the CPU.
        ids: of the samples, whole numbers, each once, in any order, shape (M,).

    Raises:
        InputError: for shapes that do not fit, no sample at all, an id that occurs twice, or a logit that is not finite.
    """

    def __init__(self, logits: Tensor, ids: Tensor) -> None:
        if ids.ndim == 1 and (logits.ndim == 0 or len(logits) != len(ids)):
            raise InputError(
                f"the teacher's predictions have shape {tuple(logits.shape)}, but there are {len(ids)} ids"
            )
        self._index = IdIndex(ids)
        self.ids = self._index.ids
        self.logits = to_class_logits(logits.detach().to("cpu", torch.float32))
        finite = self.logits.isfinite().all(dim=-1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InputError(f"the teacher's logits of row {row} (sample {int(self.ids[row])}) are NaN or infinite")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[-1]

    def lookup(self, ids: Tensor) -> Tensor:
        """Logits of samples.

        The table stays on the CPU, whatever its size. Ask with ids on the CPU, as a loader gives them, and move the result:
        ids on an accelerator have to be read back first, which waits for it.

        Args:
            ids: whole numbers, shape (N,), in any order, repeats allowed.

        Returns:
            Shape (N, C), float32, on the device of ``ids``.

        Raises:
            InputError: for an id that is not stored.
        """
        return self.logits[self._index.rows(ids)].to(ids.device)

    @classmethod
    def from_file(cls, path: str | Path, *, num_classes: int | None = None) -> StoredPredictions:
        """Predictions from a file.

        Args:
            path: ``.npz`` or ``.safetensors`` with arrays ``ids`` and either ``probs`` or ``logits``; ``.parquet`` with a
                column ``id`` and either a list column ``probs`` or ``logits``, or columns ``prob_0``, ... or ``logit_0``, ....
                One number a sample is the logit, or the probability, of class 1 of two. Read as float32; a probability
                below 1.2e-38 counts as that.
            num_classes: C; None takes what the file holds.

        Raises:
            InputError: naming the file, for one that is missing, damaged or does not hold these, for rows that are not
                distributions, another number of classes, and whatever the constructor refuses.
        """
        ids, kind, values = read_predictions(path)
        try:
            if kind == "probs":
                if values.ndim == 1 or (values.ndim == 2 and values.shape[-1] == 1):
                    p = values.reshape(-1)
                    values = torch.stack([1 - p, p], dim=-1)
                if values.ndim != 2:
                    raise InputError(f"probs must have shape (M, C), (M, 1) or (M,), not {tuple(values.shape)}")
                values = logits_from_probs(values)
            stored = cls(values, ids)
            if num_classes is not None and stored.num_classes != num_classes:
                raise InputError(f"holds predictions for {stored.num_classes} classes, but the task has {num_classes}")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return stored

    def save(self, path: str | Path) -> None:
        """Write ids and logits to an ``.npz``, ``.safetensors`` or ``.parquet`` file, in the order of ``ids``."""
        write_predictions(path, self.ids, self.logits)

    @classmethod
    def from_teacher(cls, teacher: Any, *loaders: Iterable[Any]) -> StoredPredictions:
        """Ask any teacher once for every sample.

        Augmentation in a loader is drawn once and then fixed; pass loaders without it.

        Args:
            teacher: a module, put in eval mode meanwhile, or any callable from inputs to logits.
            *loaders: batches ``(inputs, target, ids)``. A sample may come more than once, as in an oversampled training set.

        Raises:
            InputError: for batches without ids, an id for which the teacher gives different answers, and whatever the
                constructor refuses.
        """
        if isinstance(teacher, nn.Module):
            with eval_mode(teacher):
                return cls(*_each_once(*_asked(teacher, loaders, module_device(teacher))))
        return cls(*_each_once(*_asked(teacher, loaders, None)))


@torch.no_grad()
def _asked(teacher: Any, loaders: Iterable[Iterable[Any]], device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Logits and ids of all batches, on the CPU. Inputs go to ``device``, or stay where they are."""
    logits, ids = [], []
    with replayed(random_state(device or torch.device("cpu"))):  # a DataLoader draws a seed when it starts
        for loader in loaders:
            for batch in loader:
                if not isinstance(batch, tuple | list) or len(batch) != 3:
                    raise InputError("to store a teacher's predictions a loader must yield (inputs, target, ids)")
                inputs = batch[0] if device is None else move_data_to_device(batch[0], device)
                logits.append(class_logits(teacher, inputs).cpu())
                ids.append(batch[2].cpu())
    if not logits:
        raise InputError("the loaders hold no samples to ask the teacher about")
    return torch.cat(logits), torch.cat(ids)


def _each_once(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first answer for each id. Those for a repeated id may differ by rounding, not by more."""
    first, place = first_rows(ids)
    if len(first) == len(ids):
        return logits, ids
    apart = (logits - logits[first][place]).abs().amax(dim=-1)
    wrong = apart > 1e-2 * logits.abs().amax(dim=-1).clamp(min=1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"the teacher gives different logits for two samples with the id {int(ids[row])} (by {float(apart[row]):.3g}); "
            "ids must name samples, and the loaders must not augment"
        )
    kept = first.sort().values
    return logits[kept], ids[kept]
