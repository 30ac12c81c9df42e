"""Short and made-up runs for the tests of comparisons, reports and the command line."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from tgeokd.runs.config import RunConfig, override, preset
from tgeokd.runs.plan import parse_method
from tgeokd.runs.results import RunRecord

SHORT = ["student.epochs=2", "teacher.epochs=2", "teacher.patience=null"]


def short(*settings: str) -> RunConfig:
    """The digits recipe with two epochs of everything."""
    return override(preset("digits"), [*SHORT, *settings])


def set_options(*settings: str) -> list[str]:
    """The same on the command line."""
    return [part for setting in (*SHORT, *settings) for part in ("--set", setting)]


def a_run(variant: str, row: str, seed: int = 0, **fields: Any) -> RunRecord:
    """A made-up run of a row given as text."""
    fixed = {"seconds": 1.0, "epochs": 3, "best_epoch": seed, "peak_memory_mb": 100.0, "trains_on_validation": False}
    spec = parse_method(row)
    names = {"method": spec.method, "options": spec.options, "train_on": spec.train_on}
    return RunRecord(variant=variant, seed=seed, **names, **(fixed | {"metrics": {"accuracy": 0.5}} | fields))


class Outcome(NamedTuple):
    """Exit code and output of the command `tgeokd`."""

    code: int
    out: str
    err: str


class InlinePool:
    """Replaces a ProcessPoolExecutor: every job is done immediately in this process, so nothing is imported twice."""

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
