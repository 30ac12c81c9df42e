"""A progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tgeokd.training.callbacks.base import Callback

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller


class ProgressBar(Callback):
    """A bar over all steps, with the last epoch's loss, mean alpha and validation accuracy."""

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
            shown.append(f"validation {100 * record['val_accuracy']:.2f} %")
        self._progress.update(self._task, epoch=f"{record['epoch'] + 1}/{distiller.epochs}", shown="  ".join(shown))

    def on_exit(self, distiller: Distiller) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()
