"""The registry of tasks, and what a task's file uses to describe itself. Imports nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tgeokd.utils.errors import InputError
from tgeokd.utils.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray
    from torch import Tensor

    from tgeokd.data.tables.reader import Table

    Confusion = Callable[[Mapping[str, Any], Path, int], Tensor | None]
    RowReader = Callable[..., Iterator[tuple[NDArray[np.int64], pl.DataFrame]]]


F = TypeVar("F", bound=Callable[..., Any])

TASKS: Registry[Any] = Registry("task", "tgeokd.data.tasks", group="tgeokd.tasks")
"""Functions that take the options of a task as keyword arguments and return its :class:`~tgeokd.data.base.TaskData`."""


def find_path(data_dir: Path, folders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first existing path among ``names`` in ``folders`` of ``data_dir``, then in ``data_dir``; None where none exists."""
    names = list(names)
    places = (data_dir / folder / name for folder in (*folders, "") for name in names)
    return next((path for path in places if path.exists()), None)


def existing_path(data_dir: Path, folder: str, name: str, advice: str = "") -> Path:
    """A path in ``folder`` of ``data_dir`` or in ``data_dir``; an InputError with some advice where neither exists."""
    path = find_path(data_dir, [folder], [name])
    if path is None:
        places = f"neither {data_dir / folder / name} nor {data_dir / name} exists"
        raise InputError(f"{places}; {advice}" if advice else places)
    return path


def provides(*, read_rows: RowReader | None = None, confusion: Confusion | None = None) -> Callable[[F], F]:
    """A decorator that stores what a task has besides its data, as attributes of its function.

    Args:
        read_rows: for tasks that ``tgeokd predict`` supports: yields, for a file in the format of the task, row numbers and
            rows as the task's encoder takes them. Labels may be missing. Where it has a parameter ``options``, it gets the
            options that the task was trained with, and the notes of its data under ``notes``.
        confusion: returns, for the options, the data folder and C, how often people label a sample of class ``row`` as class
            ``column``, int64, shape (C, C); None where that is not known.
    """

    def add(task: F) -> F:
        task.read_rows, task.confusion = read_rows, confusion  # type: ignore[attr-defined]
        return task

    return add


def row_reader(read: Callable[[Path], Table]) -> RowReader:
    """The ``read_rows`` of a task whose files are read as a whole."""

    def read_rows(path: Path) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
        table = read(path)
        yield table.rows, table.frame

    return read_rows


def same_options(other: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator that replaces ``**options`` in a signature by the keyword-only options with defaults of another function.

    Options are checked against the signature, so it must list them; two tasks that share an implementation need not repeat it.
    ``other`` is the function in the same module that ``**options`` are passed on to.
    """

    def add(task: F) -> F:
        signature, theirs = inspect.signature(task), inspect.signature(other).parameters.values()
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [p for p in theirs if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
        shared = [p for p in shared if p.name not in signature.parameters]
        task.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        task.__annotations__ |= {p.name: p.annotation for p in shared}
        return task

    return add
