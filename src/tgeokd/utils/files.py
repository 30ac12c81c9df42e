"""Atomic writes: a file is either the old or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tgeokd.utils.errors import InputError, StorageError, cannot_write, of_the_disk


def user_path(path: str | Path) -> Path:
    """A path as the user gave it, with ``~`` for the home folder."""
    return Path(path).expanduser()


def check_writable(folder: Path, *, create: bool = True) -> None:
    """Create a folder and write to it, or with ``create=False`` to the folder that it would be in; an InputError where that is
    impossible.
    """
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        place = next(each for each in (folder, *folder.resolve().parents) if each.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise unusable(folder, error) from error


def replace_file(path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, and move it to ``path`` in one step.

    Without ``flush`` the file may be lost, or empty, where the machine (not the process) stops within seconds.

    Raises:
        StorageError: where the disk is full or the folder is gone or cannot be written. ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")  # a name has at most 255 letters
    try:
        temporary.touch()  # with the mode of any new file; safetensors makes its files for the owner alone
        write(temporary)
        if flush:
            to_disk(temporary)
        temporary.replace(path)
    except Exception as error:
        if not of_the_disk(error):
            raise
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Create a file of a size whose blocks exist: writing to a memory map of a sparse file on a full disk is a SIGBUS."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            return
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(content: Any, *, compact: bool = False) -> str:
    """The text of a JSON file, on one line if ``compact``."""
    return json.dumps(content, indent=None if compact else 2) + "\n"


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write a JSON file atomically, on one line if ``compact``."""
    write_text(path, json_text(content, compact=compact))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def slug(text: str) -> str:
    """A folder name for a row of a comparison: ``kd (alpha=0.5)`` becomes ``kd-alpha=0.5``."""
    return "-".join("".join(c if c.isalnum() or c in "=.+-_" else " " for c in text).split())


def unusable(folder: Path, error: OSError) -> InputError | StorageError:
    """The error for a folder that cannot be written: the user's where another folder would do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return cannot_write(folder, error)
    return InputError(f"cannot write to the folder {folder}: {error.strerror}")
