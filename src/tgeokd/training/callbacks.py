"""What may happen along a training run: a progress bar, early stopping, anything of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller

__all__ = ["Callback", "EarlyStopping", "ProgressBar"]


class Callback:
    """Base of all callbacks: override what you need. ``distiller`` gives access to the student, the method and the history."""

    def on_fit_start(self, distiller: Distiller) -> None:
        """Before the first epoch."""

    def on_step_end(self, distiller: Distiller) -> None:
        """After every optimizer step."""

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """After every epoch. ``record`` is its line of ``metrics.jsonl``; set ``distiller.should_stop`` to end training."""

    def on_fit_end(self, distiller: Distiller) -> None:
        """After the last epoch."""

    def on_exit(self, distiller: Distiller) -> None:
        """When ``fit`` is left, also by an error: give back what was taken."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


class EarlyStopping(Callback):
    """Stop when the held-out loss has not fallen for ``patience`` epochs, and go back to the best weights.

    Args:
        patience: epochs without a new lowest held-out loss.
        min_delta: by how much a loss must be lower to count, in nats.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise InputError(f"patience must be >= 1, not {patience}")
        self.patience, self.min_delta = patience, min_delta
        self.best_loss = float("inf")
        self.best_epoch = -1
        self._best_weights: dict[str, Tensor] = {}

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Compare with the best epoch so far."""
        if "val_loss" not in record:
            raise InputError("early stopping watches the held-out loss and needs a val_loader")
        if record["val_loss"] < self.best_loss - self.min_delta:
            self.best_loss, self.best_epoch = record["val_loss"], record["epoch"]
            weights = distiller.student.state_dict()
            self._best_weights = {name: value.detach().clone() for name, value in weights.items()}
        elif record["epoch"] - self.best_epoch >= self.patience:
            distiller.should_stop = True

    def on_fit_end(self, distiller: Distiller) -> None:
        """Put the best weights back."""
        if self._best_weights:
            distiller.student.load_state_dict(self._best_weights)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and its weights."""
        return {"loss": self.best_loss, "epoch": self.best_epoch, "weights": self._best_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the best epoch and its weights."""
        self.best_loss, self.best_epoch, self._best_weights = state["loss"], state["epoch"], state["weights"]


class ProgressBar(Callback):
    """A bar over all steps, with the last epoch's loss, mean alpha and held-out accuracy."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            transient=False,
        )
        self._task: TaskID | None = None

    def on_fit_start(self, distiller: Distiller) -> None:
        """Show the bar."""
        total = distiller.epochs * distiller.steps_per_epoch if distiller.steps_per_epoch else None
        self._task = self._progress.add_task("", total=total, completed=distiller.step, epoch="0", shown="")
        self._progress.start()

    def on_step_end(self, distiller: Distiller) -> None:
        """Advance."""
        assert self._task is not None
        self._progress.update(self._task, completed=distiller.step)

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Show the epoch's numbers."""
        assert self._task is not None
        shown = [f"loss {record['train_loss']:.4f}"]
        if record.get("alpha_mean") is not None:
            shown.append(f"alpha {record['alpha_mean']:.3f}")
        if "val_accuracy" in record:
            shown.append(f"held-out {100 * record['val_accuracy']:.2f} %")
        self._progress.update(self._task, epoch=f"{record['epoch'] + 1}/{distiller.epochs}", shown="  ".join(shown))

    def on_exit(self, distiller: Distiller) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()
