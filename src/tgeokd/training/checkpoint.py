"""Checkpoints on disk: atomic, checksummed, read back once."""

import io
import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_model
from torch import nn

from tgeokd.core.wrapped import plain_state
from tgeokd.training.state import TrainState
from tgeokd.utils.errors import InputError, cannot_write, first_line
from tgeokd.utils.integrity import remove_with_checksum, verify_checksum, write_with_checksum
from tgeokd.utils.run_folder import CHECKPOINTS

logger = logging.getLogger(__name__)

BEST = "best.pt"
MID_EPOCH = "-mid"  # ends the name of a checkpoint that is not of the end of an epoch


class Checkpointer:
    """Writes and reads the checkpoints of a run in its folder: ``checkpoints/step-N.pt``, and ``best.pt``.

    Kept are the newest ``keep``, the newest one of the end of an epoch, and the best one.

    Args:
        folder: of the run.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.run, self.folder, self.keep = folder, folder / CHECKPOINTS, keep
        self._read_back = False
        self._writer: Future[None] | None = None

    def save(self, state: TrainState, *, best: bool = False, wait: bool = True) -> None:
        """Write a checkpoint and remove those that are not kept. The first one is read back.

        Args:
            state: of the run; it is serialised before this returns, so that training may go on.
            best: whether it is the best one so far.
            wait: until the files are on the disk. Otherwise an error is raised by the next call of any method.

        Raises:
            InputError: where the state cannot be restored from a file.
            StorageError: where the file cannot be written.
        """
        self.wait()
        # Serialised here: a thread that pickles holds the interpreter, one that writes does not.
        content = _serialised(state.to_dict())
        path = self.folder / f"step-{state.step['index']:09d}{'' if state.batch == 0 else MID_EPOCH}.pt"
        if wait or not self._read_back:
            self._write(path, content, best)
            if not self._read_back:
                self._check(path, state)
                self._read_back = True
        else:
            writer = ThreadPoolExecutor(1, "checkpoint")
            self._writer = writer.submit(self._write, path, content, best)
            writer.shutdown(wait=False)

    def wait(self) -> None:
        """Until the checkpoint that is being written is on the disk; raises its error."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.result()

    def _write(self, path: Path, content: memoryview, best: bool) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        write_with_checksum(path, lambda temporary: temporary.write_bytes(content))
        if best:
            write_with_checksum(self.folder / BEST, partial(shutil.copyfile, path), flush=False)
        paths = self._paths()
        kept = {*paths[-self.keep :], *[each for each in paths if not each.stem.endswith(MID_EPOCH)][-1:], path}
        # those after this one are of a run that was resumed from an earlier one
        for other in paths:
            if other not in kept or _step(other) > _step(path):
                with suppress(OSError):
                    remove_with_checksum(other)

    def load(self, which: Literal["last", "best", "epoch"] = "last") -> TrainState:
        """The newest checkpoint that is not damaged (a damaged one is named in a warning), or the best one.

        ``epoch`` is the newest one of the end of an epoch.

        Raises:
            InputError: where there is none, or only one of an earlier version.
        """
        if (self.run / "last.ckpt").exists():
            raise InputError(
                f"{self.run / 'last.ckpt'} was written by an earlier version of tgeokd, whose unfinished runs cannot be "
                "resumed; start the run again in another folder"
            )
        paths = [] if which == "best" else self._paths()
        if which == "epoch":
            paths = [path for path in paths if not path.stem.endswith(MID_EPOCH)]
        best = [path for path in (self.folder / BEST,) if path.exists()]
        if not (paths or best):
            raise InputError(
                f"{self.run} holds no checkpoint to resume from ({CHECKPOINTS}/step-*.pt)"
                if which != "best"
                else f"{self.run} holds no best checkpoint: one is kept where there are validation samples to judge by"
            )
        for path in [*reversed(paths), *best]:
            try:
                return self._read(path)
            except InputError as error:
                logger.warning("%s", error)
                last = error
        raise last

    def forget_start(self) -> None:
        """Remove the checkpoints of a run that has not come beyond its first one."""
        self.wait()
        if all(_step(path) == 0 for path in self._paths()):
            shutil.rmtree(self.folder, ignore_errors=True)

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
        return sorted(self.folder.glob("step-*.pt"), key=lambda path: (_step(path), path.name))

    @staticmethod
    def _read(path: Path) -> TrainState:
        """Read and verify a checkpoint; only tensors and plain values are unpickled."""
        verify_checksum(path, "the checkpoint", required=True)
        try:
            return TrainState.from_dict(torch.load(path, map_location="cpu", weights_only=True), str(path))
        except InputError:
            raise
        except Exception as error:  # whatever foreign content makes torch and its unpickler raise
            raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from error


def _step(path: Path) -> int:
    """The number of steps in the name of a checkpoint; -1 for another file."""
    number = path.stem.removeprefix("step-").removesuffix(MID_EPOCH)
    return int(number) if number.isdigit() else -1


def _serialised(content: Any) -> memoryview:
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except Exception as error:  # whatever a value raises when it is pickled
        fault = _fault(content)
        if fault is None:
            raise
        raise InputError(_refusal(fault)) from error
    return buffer.getbuffer()


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
    """Write a module's weights to a safetensors file, atomically and with a checksum, by their names without wrappers.

    The file also has the names of the classes, if they have names.
    """
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    write_with_checksum(path, lambda temporary: save_model(_Plain(model), str(temporary), metadata))  # type: ignore[arg-type]


class _Plain:
    """Has the state of a module by the names without wrappers, for a function that asks a module for it."""

    def __init__(self, model: nn.Module) -> None:
        self._state = plain_state(model)

    def state_dict(self) -> dict[str, Any]:
        return self._state
