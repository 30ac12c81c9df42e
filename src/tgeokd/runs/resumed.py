"""A run that is resumed with some settings changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tgeokd.runs.config import RunConfig, override, parse_setting
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError
from tgeokd.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller

# What in the training differs where a setting does; a setting that is not here cannot be changed.
CHANGES: dict[str, tuple[str, ...]] = {
    "student.epochs": ("epochs", "scheduler"),
    "student.batch_size": ("batch_size",),
    "student.clip_norm": ("clip_norm",),
    "student.optimizer": ("optimizer", "scheduler"),
    "temperature": ("temperature",),
    "options": ("options",),
    "precision": ("precision",),
    "checkpoint_every": (),
    "checkpoint_minutes": (),
    "keep_checkpoints": (),
    "on_divergence": (),
    "accelerator": (),
    "threads": (),
}


def changed_config(config: RunConfig, settings: Iterable[str]) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings of a run with some changed, and what :meth:`tgeokd.Distiller.fit` must accept.

    Raises:
        InputError: for a setting that does not exist, or cannot be changed in a run that has begun.
    """
    settings = [*settings]
    accepted: dict[str, None] = {}
    for setting in settings:
        key, _ = parse_setting(setting, setting, "--set key=value")
        known = next((name for name in CHANGES if key == name or key.startswith(f"{name}.")), None)
        if known is None:
            override(config, [setting])  # an unknown name is the nearer fault
            raise InputError(
                f"{key} cannot be changed in a run that has begun ({', '.join(CHANGES)} can): start a new run"
            )
        accepted |= dict.fromkeys(CHANGES[known])
    return override(config, settings), tuple(accepted)


class NewConfig(Callback):
    """Replaces ``config.yaml`` once the checkpoint was accepted, and keeps that of the epochs before beside it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config

    def on_fit_start(self, distiller: Distiller) -> None:
        """Write the files."""
        path = self.folder / "config.yaml"
        kept = self.folder / f"config-until-epoch-{distiller.epoch}.yaml"
        if path.exists() and not kept.exists():
            shutil.copy(path, kept)
        RunFolder(self.folder, resume=True).write_yaml("config.yaml", self.config.to_dict())
