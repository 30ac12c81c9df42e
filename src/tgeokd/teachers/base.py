"""The contract of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tgeokd.data.batch import Batch


class Teacher(ABC):
    """Gives logits for batches: a network, stored predictions, a fitted classifier, or a cache around any of them.

    Attributes:
        num_classes: C; None where it is not known before the first batch.
        class_names: names of the C classes; empty where they have none.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Teacher logits of a batch, shape (N, C), on the device of the batch, without a graph."""

    def fingerprint(self) -> str | None:
        """A hash of everything the logits depend on; None where it cannot be distinguished from other teachers."""
        return None

    def of(self, loader: Iterable[Any]) -> Teacher:
        """The teacher for the batches of one loader; only a cache distinguishes them."""
        return self

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 (only a cache overrides it)
        """Called before each epoch; only a cache of augmented views depends on it."""
