"""Checksums of files that are read later: beside ``FILE`` stands ``FILE.sha256``, as the command ``sha256sum`` writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tgeokd.utils.errors import InputError
from tgeokd.utils.files import replace_file


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    """Where the checksum of a file is kept."""
    return path.with_name(f"{path.name}.sha256")


def write_with_checksum(path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """:func:`~tgeokd.utils.files.replace_file`, and the checksum of what the file holds.

    The checksum comes first: a process that is killed leaves no new file without one.
    """
    ours = False  # whether the checksum is that of the new content

    def noted(temporary: Path) -> None:
        nonlocal ours
        write(temporary)
        ours = True
        line = f"{sha256(temporary)}  {path.name}\n"
        replace_file(checksum_file(path), lambda kept: kept.write_text(line, encoding="utf-8"), flush=False)

    try:
        replace_file(path, noted, flush=flush)
    except BaseException:
        if ours:
            with suppress(OSError):
                checksum_file(path).unlink(missing_ok=True)
        raise


def remove_with_checksum(path: Path) -> None:
    """Remove a file and its checksum."""
    path.unlink(missing_ok=True)
    checksum_file(path).unlink(missing_ok=True)


def verify_checksum(path: Path, what: str, *, required: bool = False) -> None:
    """Raise an InputError where a file differs from its checksum; also where it has none, if that is required.

    Args:
        path: the file.
        what: it is, for the message: ``the checkpoint``.
        required: files that were written with a checksum in any case.
    """
    kept = checksum_file(path)
    try:
        words = kept.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        if required:
            raise InputError(f"{what} {path} is not complete: its checksum {kept.name} is missing") from None
        return
    except OSError as error:
        raise InputError(f"cannot read the checksum {kept}: {error.strerror}") from error
    if not words or sha256(path) != words[0]:
        raise InputError(f"{what} {path} is damaged: its checksum differs from the one in {kept.name}")
