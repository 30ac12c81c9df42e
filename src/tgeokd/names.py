"""Looking things up by name, with an error that helps when the name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from tgeokd.errors import InputError

__all__ = ["Lazy", "check_names", "look_up", "unknown_name"]

T = TypeVar("T")

EXTRA_OF = {"torchvision": "vision", "timm": "vision", "transformers": "text"} | dict.fromkeys(
    ("polars", "pyarrow", "imblearn"), "tabular"
)


class Lazy(Mapping[str, T]):
    """A registry whose entries are imported when they are first asked for: what is not used need not be installed.

    Args:
        places: name to ``"module:attribute"``.

    Raises:
        InputError: on access, where an optional dependency of the entry is not installed; it names the extra to install.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> T:
        module, _, attribute = self._places[name].partition(":")
        try:
            entry: T = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            extra = EXTRA_OF.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise InputError(f"{name!r} needs {error.name}: pip install 'tgeokd[{extra}]'") from error
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a registry.

    Raises:
        ValueError: for a name that is not there, with the nearest one.
    """
    if name not in table:
        raise InputError(unknown_name(kind, name, table))
    return table[name]


def check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ValueError for the first name that is not known, with the nearest one."""
    known = list(known)
    for name in given:
        if name not in known:
            raise InputError(unknown_name(kind, name, known))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line: what is unknown, the nearest name, and all names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(known) or 'none'}"
