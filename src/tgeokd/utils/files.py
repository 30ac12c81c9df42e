"""The folder of a run: nothing is overwritten, and every file is either the old or the new one, never half of one."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_model
from torch import nn

from tgeokd.utils.errors import InputError

__all__ = ["RunFolder", "replace_file", "slug"]

MARKS = ("metrics.jsonl", "last.ckpt", "student.safetensors", "results.json", "comparison.yaml")


class RunFolder:
    """Files of one run.

    Args:
        path: the folder; made where it does not exist.
        resume: continue what is there.
        checkpoint_needed: whether there must be a checkpoint to resume from.

    Raises:
        ValueError: where the folder already holds a run (without ``resume``), holds none to resume, or cannot be written.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, checkpoint_needed: bool = True) -> None:
        self.path = Path(path)
        held = [mark for mark in MARKS if (self.path / mark).exists()]
        if held and not resume:
            raise InputError(f"{self.path} already holds a run ({held[0]}); choose another folder, or resume it")
        if resume and checkpoint_needed and not self.checkpoint.exists():
            raise InputError(f"{self.path} holds no checkpoint to resume from (last.ckpt/state.pt)")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise InputError(f"cannot write to the folder {self.path}: {error.strerror}") from error

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is."""
        return self.path / "last.ckpt" / "state.pt"

    def write_json(self, name: str, content: Any, *, compact: bool = False) -> None:
        """Write a JSON file, on request in one line."""
        text = json.dumps(content, indent=None if compact else 2) + "\n"
        replace_file(self.path / name, lambda path: _write_text(path, text))

    def write_yaml(self, name: str, content: Any) -> None:
        """Write a YAML file."""
        text = yaml.safe_dump(content, sort_keys=False)
        replace_file(self.path / name, lambda path: _write_text(path, text))

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        """Write a file with one JSON object a line."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        replace_file(self.path / name, lambda path: _write_text(path, text))

    def append_line(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON object as a line."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def write_weights(self, model: nn.Module) -> None:
        """Write a module's weights to ``student.safetensors``."""
        replace_file(self.path / "student.safetensors", lambda path: save_model(model, str(path)))

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state to resume from."""
        self.checkpoint.parent.mkdir(exist_ok=True)
        replace_file(self.checkpoint, lambda path: torch.save(state, path))

    def read_checkpoint(self) -> dict[str, Any]:
        """The state to resume from; only tensors and plain values are unpickled."""
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"cannot read the checkpoint {self.checkpoint}: damaged, or not written by tgeokd"
            ) from error
        return state


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, force it to disk, then put it in place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(text: str) -> str:
    """A folder name for a setting or a row of a comparison: ``kd (alpha=0.5)`` becomes ``kd-alpha=0.5``."""
    return "-".join("".join(c if c.isalnum() or c in "=.+-_" else " " for c in text).split())


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
