"""Short runs for the tests of experiments, reports and the command line."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from tgeokd.runs.config import RunConfig, override, preset

SHORT = ["student.epochs=2", "teacher.epochs=2", "teacher.patience=null"]


def short(*settings: str) -> RunConfig:
    """The digits recipe with two epochs of everything."""
    return override(preset("digits"), [*SHORT, *settings])


def set_options(*settings: str) -> list[str]:
    """The same on the command line."""
    return [part for setting in (*SHORT, *settings) for part in ("--set", setting)]


class Outcome(NamedTuple):
    """What the command `tgeokd` came to."""

    code: int
    out: str
    err: str


class InlinePool:
    """Takes the place of a ProcessPoolExecutor: every job is done at once and here, so nothing is imported twice."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass


def contents(folder: Path, pattern: str = "*") -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of each file below a folder."""
    files = (path for path in sorted(folder.rglob(pattern)) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
