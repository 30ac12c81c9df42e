"""Early stopping on the validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tgeokd.core.wrapped import load_plain_state, plain_state
from tgeokd.training.callbacks.base import Callback
from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller


class EarlyStopping(Callback):
    """Stop when the validation loss has not fallen for ``patience`` epochs, and restore the best weights.

    Args:
        patience: epochs without a new lowest validation loss.
        min_delta: smallest decrease of the loss that counts, in nats.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise InputError(f"patience must be >= 1, not {patience}")
        self.patience, self.min_delta = patience, min_delta
        self.best_loss = float("inf")
        self.best_epoch = -1
        self._best_weights: dict[str, Tensor] = {}

    def on_fit_start(self, distiller: Distiller) -> None:
        """Forget an earlier run, unless this one is resumed."""
        if distiller.step == 0:
            self.best_loss, self.best_epoch, self._best_weights = float("inf"), -1, {}

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Compare with the best epoch so far."""
        if "val_loss" not in record:
            raise InputError("early stopping monitors the validation loss and needs a val_loader")
        if record["val_loss"] < self.best_loss - self.min_delta:
            self.best_loss, self.best_epoch = record["val_loss"], record["epoch"]
            weights = plain_state(distiller.student)
            self._best_weights = {name: value.detach().clone() for name, value in weights.items()}
        elif record["epoch"] - self.best_epoch >= self.patience:
            distiller.should_stop = True

    def on_fit_end(self, distiller: Distiller) -> None:
        """Restore the best weights."""
        if self._best_weights:
            load_plain_state(distiller.student, self._best_weights)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and its weights."""
        return {"loss": self.best_loss, "epoch": self.best_epoch, "weights": self._best_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best_loss, self.best_epoch, self._best_weights = state["loss"], state["epoch"], state["weights"]
