"""Checkpoints on disk: atomic, checksummed, read back once."""

import io
import json
import logging
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from tgeokd.core.wrapped import plain_state
from tgeokd.training.state import TrainState
from tgeokd.utils.errors import InputError, cannot_write, first_line, of_the_disk
from tgeokd.utils.files import CHECKPOINTS, replace_file
from tgeokd.utils.integrity import remove_with_checksum, verify_checksum, write_with_checksum

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
        except OSError as error:
            raise cannot_write(path, error) from error
        write_with_checksum(path, lambda temporary: _write(state.to_dict(), temporary))
        if not self._read_back:
            self._check(path, state)
            self._read_back = True
        for old in self._paths()[: -self.keep]:
            remove_with_checksum(old)
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

    def _check(self, path: Path, state: TrainState) -> None:
        """Read a checkpoint back; one that cannot be restored is removed, and the entry at fault is named."""
        try:
            self._read(path)
        except InputError as error:
            remove_with_checksum(path)
            fault = _fault(state.to_dict())
            if fault is None:
                raise
            raise InputError(_refusal(fault)) from error

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    @staticmethod
    def _read(path: Path) -> TrainState:
        """Read and verify a checkpoint; only tensors and plain values are unpickled."""
        try:
            verify_checksum(path, "the checkpoint", required=True)
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, IndexError, pickle.UnpicklingError) as error:
            raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from error
        return TrainState.from_dict(content, str(path))


def _write(content: Any, path: Path) -> None:
    try:
        torch.save(content, path)
    except Exception as error:  # whatever a value raises when it is pickled
        fault = None if of_the_disk(error) else _fault(content)
        if fault is None:
            raise
        raise InputError(_refusal(fault)) from error


def _fault(value: Any, path: str = "") -> tuple[str, Any] | None:
    """Where the first value stands that cannot be written and read back, and the value; None where all can."""
    if isinstance(value, Mapping) and type(value) in (dict, OrderedDict):
        inner: Any = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif type(value) in (list, tuple):
        inner = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        inner = ()
        try:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception:  # whatever the value raises when it is pickled
            return path, value
    return next((found for name, item in inner if (found := _fault(item, name)) is not None), None)


def _refusal(fault: tuple[str, Any]) -> str:
    name, value = fault
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return (
        f"the state of the run cannot be restored from a checkpoint: {name} is of type {kind}; the states of callbacks, "
        "methods, optimizers and students may hold only tensors, numbers, text, None, and lists and dictionaries of them"
    )


def write_weights(path: Path, model: nn.Module, class_names: Sequence[str] = ()) -> None:
    """Write a module's weights to a safetensors file, atomically, by their names without wrappers.

    The file also has the names of the classes, if they have names.
    """
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    replace_file(path, lambda temporary: save_model(_Plain(model), str(temporary), metadata))  # type: ignore[arg-type]


class _Plain:
    """Has the state of a module by the names without wrappers, for a function that asks a module for it."""

    def __init__(self, model: nn.Module) -> None:
        self._state = plain_state(model)

    def state_dict(self) -> dict[str, Any]:
        return self._state
