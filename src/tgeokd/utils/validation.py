"""Values from outside (YAML, JSON, the command line) checked by pydantic, with errors of one line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tgeokd.utils.errors import InputError, one_line

__all__ = ["validate_as"]

T = TypeVar("T")


def validate_as(kind: type[T], content: Any, where: str) -> T:
    """Build a dataclass or pydantic model from plain data.

    Args:
        kind: the class.
        content: usually a mapping; nested mappings become the nested classes.
        where: what the content is, the start of the message.

    Raises:
        InputError: naming the first wrong field and its value.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The first problem of a validation in one line."""
    first = error.errors(include_url=False)[0]
    path = join_path(first["loc"])
    return f"{path}: {one_line(ValueError(first['msg']))}, not {first['input']!r:.200}"


def join_path(location: Sequence[int | str]) -> str:
    """``("a", "b", 0)`` as ``a.b[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
