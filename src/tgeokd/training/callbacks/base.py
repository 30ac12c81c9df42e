"""What a callback can do in the course of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller


class Callback:
    """Base of all callbacks: override what you need. ``distiller`` gives access to the student, the method and the history."""

    def on_fit_start(self, distiller: Distiller) -> None:
        """Before the first epoch."""

    def on_step_end(self, distiller: Distiller) -> None:
        """After every optimizer step."""

    def on_epoch_end(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """After every epoch. ``record`` is its line of ``metrics.jsonl``; set ``distiller.should_stop`` to stop."""

    def on_fit_end(self, distiller: Distiller) -> None:
        """After the last epoch."""

    def on_exit(self, distiller: Distiller) -> None:
        """When ``fit`` ends, also by an error: release what was acquired."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
