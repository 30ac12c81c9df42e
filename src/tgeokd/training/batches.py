"""From a loader to batches on the student's device."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from tgeokd.core.validation import validate_labels
from tgeokd.data.batch import Batch
from tgeokd.utils.errors import InputError


class BatchReader:
    """Reads batches: interprets what a loader yields, checks the labels, and moves everything to the student's device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_classes: int | None = None  # C, once it is known; labels are checked against it

    def read(self, item: Any, where: str) -> Batch:
        """The batch that a loader, called ``where`` in messages, yielded, ready for the student.

        Raises:
            InputError: for a batch of another form, and labels that are not class indices from 0 to C - 1.
        """
        batch = Batch.parse(item, where)
        target = batch.target
        if not isinstance(target, Tensor):
            validate_labels(target, 0, where)
        if target.ndim and not len(target):
            raise InputError(
                f"the {where} yielded a batch without samples: leave it out (a sampler or collate_fn made it)"
            )
        if isinstance(batch.inputs, Tensor) and target.ndim and len(batch.inputs) != len(target):
            raise InputError(f"the {where} yielded {len(batch.inputs)} inputs with {len(target)} labels")
        # Reading labels that are on an accelerator already would stall every step.
        on_accelerator = isinstance(target, Tensor) and target.device.type != "cpu"
        if self.num_classes is not None and not on_accelerator:
            validate_labels(target, self.num_classes, where)
        return self.move(batch)

    def read_all(self, loader: Iterable[Any], where: str) -> Iterator[Batch]:
        """All batches of a loader."""
        if not isinstance(loader, Iterable):
            raise InputError(f"the {where} must be an iterable of batches, not {type(loader).__name__}")
        for item in loader:
            yield self.read(item, where)

    def move(self, batch: Batch) -> Batch:
        """The batch on the device. Ids stay where they are: stored logits are found by them on the CPU."""
        if self._is_ready(batch.inputs) and self._is_ready(batch.target):
            return batch
        inputs, target = self._to_device((batch.inputs, batch.target))
        return Batch(inputs, target, batch.ids)

    def autocast(self) -> AbstractContextManager[None]:
        """Entered around forward passes; by default what the caller has entered already."""
        return nullcontext()

    def _to_device(self, values: Any) -> Any:
        return move_data_to_device(values, self.device)

    def _is_ready(self, value: Any) -> bool:
        """Whether there is nothing to move: the general way to find out costs as much as a small student's forward pass."""
        if isinstance(value, Tensor):
            return value.device == self.device
        return isinstance(value, tuple | list) and all(map(self._is_ready, value))


class FabricReader(BatchReader):
    """The same with Lightning Fabric's device and precision."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__(fabric.device)
        self.fabric = fabric
        self.precision: str = fabric.strategy.precision.precision

    def autocast(self) -> AbstractContextManager[None]:
        """Of Fabric's precision."""
        return nullcontext() if self.precision == "32-true" else self.fabric.autocast()

    def _to_device(self, values: Any) -> Any:
        inputs, target = self.fabric.to_device(values)
        # Under autocast the inputs stay in full precision: autocast casts them where that is safe.
        if not self.precision.endswith("mixed"):
            inputs = self.fabric.strategy.precision.convert_input(inputs)
        return inputs, target

    def _is_ready(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            fits = self.precision == "32-true" and value.dtype in (torch.float32, torch.int64)
            return fits and value.device == self.device
        return super()._is_ready(value)


def length_of(loader: Any) -> int | None:
    """How many batches a loader yields, or a data set holds; None where it does not know."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set
        return None
