"""Something happens at the n-th call of this process that changes a file."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "link", "truncate", "posix_fallocate")


@contextmanager
def at_call(folder: Path, number: int, action: Callable[[str], None]) -> Iterator[list[str]]:
    """Call ``action`` before the n-th call, from 1, that creates, changes or removes a file in a folder.

    Yields:
        The list of these calls, which grows: ``open NAME``, ``fsync NAME``, ``replace NAME``, ...
    """
    calls: list[str] = []
    inside = str(folder.resolve())
    before = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    opened, io_opened = builtins.open, io.open

    def note(what: str, path: Any) -> None:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return
        text = os.path.abspath(os.fspath(path))
        if text.startswith(inside) and not text.endswith((".lock", "log.txt")):
            calls.append(f"{what} {os.path.relpath(text, inside)}")
            if len(calls) == number:
                action(calls[-1])

    def hooked(name: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            note(name, path)
            return before[name](path, *arguments, **options)

        return call

    def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if any(letter in mode for letter in "wxa+"):
            note("open", file)
        return io_opened(file, mode, *arguments, **options)

    for name in before:
        setattr(os, name, hooked(name))
    builtins.open = io.open = opening
    try:
        yield calls
    finally:
        for name, function in before.items():
            setattr(os, name, function)
        builtins.open, io.open = opened, io_opened


def die(_: str) -> None:
    """End this process at once, as an operating system that is out of memory does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(call: str) -> None:
    """Fail as a full disk does; removing something works on a full disk."""
    if not call.startswith(("unlink", "rmdir")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
