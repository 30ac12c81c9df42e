"""Looking things up by name, with an error that helps when the name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tgeokd.errors import InputError

__all__ = ["check_names", "look_up", "unknown_name"]

T = TypeVar("T")


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
