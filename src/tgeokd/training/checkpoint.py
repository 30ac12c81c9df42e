"""Checkpoints on disk: atomic, checksummed, read back once."""

import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from tgeokd.training.state import TrainState
from tgeokd.utils.errors import InputError, first_line
from tgeokd.utils.files import CHECKPOINTS, replace_file, sha256, write_text

logger = logging.getLogger(__name__)


class Checkpointer:
    """Writes and reads the checkpoints of a run, ``checkpoints/step-N.pt`` in its folder.

    Args:
        folder: of the run.
        keep: how many are kept, the newest.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.run, self.folder, self.keep = folder, folder / CHECKPOINTS, keep
        self._read_back = False

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint and remove the oldest ones. The first one is read back; InputError where that fails."""
        path = self.folder / f"step-{state.step['index']:09d}.pt"
        try:
            self.folder.mkdir(exist_ok=True)
            replace_file(path, lambda temporary: torch.save(state.to_dict(), temporary))
            write_text(_checksum(path), f"{sha256(path)}  {path.name}\n")
        except OSError as error:
            raise InputError(f"cannot write the checkpoint {path}: {error.strerror}") from error
        if not self._read_back:
            self._read(path)
            self._read_back = True
        for old in self._paths()[: -self.keep]:
            _checksum(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        return path

    def load(self) -> TrainState:
        """The newest checkpoint that is not damaged; a damaged one is named in a warning.

        Raises:
            InputError: where there is none, or only one of an earlier version.
        """
        if (self.run / "last.ckpt").exists():
            raise InputError(
                f"{self.run / 'last.ckpt'} was written by an earlier version of tgeokd, whose unfinished runs cannot be "
                "resumed; start the run again in another folder"
            )
        paths = self._paths()
        if not paths:
            raise InputError(f"{self.run} holds no checkpoint to resume from ({CHECKPOINTS}/step-*.pt)")
        for path in reversed(paths):
            try:
                return self._read(path)
            except InputError as error:
                logger.warning("%s", error)
                last = error
        raise last

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    @staticmethod
    def _read(path: Path) -> TrainState:
        """Read and verify a checkpoint; only tensors and plain values are unpickled."""
        try:
            if sha256(path) != _checksum(path).read_text().split()[0]:
                raise InputError(
                    f"the checkpoint {path} is damaged: its checksum differs from the one in {_checksum(path).name}"
                )
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, IndexError, pickle.UnpicklingError) as error:
            raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from error
        return TrainState.from_dict(content, str(path))


def write_weights(path: Path, model: nn.Module, class_names: Sequence[str] = ()) -> None:
    """Write a module's weights to a safetensors file, atomically; with the names of its classes, if they have names."""
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    replace_file(path, lambda temporary: save_model(model, str(temporary), metadata))


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
