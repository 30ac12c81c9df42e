"""The folder of a run: what it holds, and its lock."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml
from filelock import FileLock, Timeout

from tgeokd.utils.errors import InputError, cannot_write
from tgeokd.utils.files import check_writable, json_text, unusable, user_path, write_text
from tgeokd.utils.integrity import write_with_checksum

CHECKPOINTS = "checkpoints"
MARKS = ("metrics.jsonl", CHECKPOINTS, "last.ckpt", "student.safetensors", "results.json", "comparison.yaml")
LOCK = ".lock"
LOCK_SECONDS = 0.5  # for a process that is ending
TEMPORARY = ".*.[0-9]*.tmp"


def begun(folder: Path) -> bool:
    """Whether a folder holds a training that can be continued: a checkpoint that was written to its end."""
    return any(path.with_name(f"{path.name}.sha256").exists() for path in (folder / CHECKPOINTS).glob("*.pt"))


def scratch(folder: Path) -> dict[str, Any]:
    """Arguments of :meth:`tgeokd.Distiller.fit` for a training whose folder is removed after it: continued if possible."""
    resume = begun(folder)
    if not resume:  # a process may have been killed while it removed the folder
        shutil.rmtree(folder, ignore_errors=True)
    return {"out": folder, "resume": resume}


class RunFolder:
    """The files of one run, for one process at a time.

    Temporary files that killed processes left in it are removed. The folder is locked until :meth:`close`, the end of a
    ``with`` block or the end of the object. Objects for the same folder in the same process share the lock.

    Args:
        path: the folder; created if it does not exist.
        resume: continue the run in the folder.
        checkpoint_needed: whether there must be a checkpoint to resume from.

    Raises:
        InputError: if the folder already holds a run (without ``resume``), holds none to resume, cannot be written, or is in
            use by another process.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, checkpoint_needed: bool = True) -> None:
        self.path = user_path(path)
        try:
            self._refuse(resume, checkpoint_needed)
            check_writable(self.path)
            self._lock: _Lock | None = _Lock.of(self.path)
            self._refuse(resume, checkpoint_needed)  # another process may have finished a run in the meantime
            for left in self.path.rglob(TEMPORARY):
                if left.is_file():  # those of a teacher cache are folders, which have a lock of their own
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise unusable(self.path, error) from error

    def _refuse(self, resume: bool, checkpoint_needed: bool) -> None:
        # A process may have been killed between the creation of the folder of checkpoints and the first one in it.
        found = [m for m in MARKS if (begun(self.path) if m == CHECKPOINTS else (self.path / m).exists())]
        if found and not resume:
            raise InputError(f"{self.path} already holds a run ({found[0]}); choose another folder, or resume it")
        if resume and checkpoint_needed and not self.has_checkpoint:
            raise InputError(f"{self.path} holds no checkpoint to resume from ({CHECKPOINTS}/step-*.pt)")

    def close(self) -> None:
        """Give the lock back."""
        self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to resume from."""
        return begun(self.path)

    def write_json(self, name: str, content: Any, *, compact: bool = False) -> None:
        """Write a JSON file with its checksum, on one line if ``compact``."""
        text = json_text(content, compact=compact)
        write_with_checksum(self.path / name, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write_yaml(self, name: str, content: Any) -> None:
        """Write a YAML file, keys in the order given."""
        write_text(self.path / name, yaml.safe_dump(content, sort_keys=False))

    def write_lines(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Write a file with one JSON object per line."""
        write_text(self.path / name, "".join(json.dumps(record) + "\n" for record in records))

    def append_line(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON object as a line; where that fails, no part of it stays."""
        path, line = self.path / name, (json.dumps(record) + "\n").encode()
        try:
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    written = file.write(line)
                    if written != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise cannot_write(path, error) from error


class _Lock:
    """The lock of a folder, held until the object or the process ends. The file names the holder."""

    _held: ClassVar[weakref.WeakValueDictionary[Path, _Lock]] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, folder: Path) -> _Lock:
        """The lock that this process holds already, or a new one."""
        lock = cls._held.get(folder.resolve())
        if lock is None or lock._pid != os.getpid():
            lock = cls._held[folder.resolve()] = cls(folder)
        return lock

    def __init__(self, folder: Path) -> None:
        path = folder.resolve() / LOCK
        self._pid = os.getpid()
        lock = FileLock(path, timeout=LOCK_SECONDS, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            holder = "another process"
            with suppress(OSError):  # Windows refuses to read a locked file
                holder = path.read_text(encoding="utf-8").strip() or holder
            raise InputError(f"{folder} is in use by {holder}; wait for it to end, or choose another folder") from None
        with suppress(OSError):
            path.write_text(f"process {self._pid} on {socket.gethostname()}\n", encoding="utf-8")
        weakref.finalize(self, _release, lock, path, self._pid)


def _release(lock: FileLock, path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the object, not the lock
        with suppress(OSError):  # Windows removes it itself
            path.unlink()
        lock.release()
