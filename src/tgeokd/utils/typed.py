"""Values from outside (a YAML file, the command line) checked against the types the code declares."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tgeokd.utils.errors import InputError, check_names

__all__ = ["call_checked", "checked", "from_mapping"]

T = TypeVar("T")


def checked(where: str, value: Any, annotation: Any) -> Any:
    """The value, if it is of the annotated type; whole numbers pass as floats and lists as tuples.

    Raises:
        InputError: with what was given and what was expected.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_fit(where, value, arguments)
    if origin is Literal:
        if value in arguments:
            return value
        raise InputError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(checked(f"{where}[{i}]", item, arguments[0]) for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return from_mapping(typing.cast("type[Any]", annotation), value, where)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    plain = origin or annotation
    if isinstance(plain, type) and isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    expected = annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)
    raise InputError(f"{where} must be of type {expected}, not {value!r}")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "setting") -> T:
    """A dataclass from a mapping: unknown keys are refused with the nearest name, values are checked, missing ones default."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_names(f"key in {where}" if where != "setting" else "setting", map(str, mapping), fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in mapping:
            raise InputError(f"{where} lacks {name!r}")
    prefix = "" if where == "setting" else f"{where}."
    return cls(**{name: checked(f"{prefix}{name}", value, hints[name]) for name, value in mapping.items()})


def _first_fit(where: str, value: Any, annotations: tuple[Any, ...]) -> Any:
    """The value as the first type of a union that it fits."""
    if value is None and type(None) in annotations:
        return None
    wanted = [annotation for annotation in annotations if annotation is not type(None)]
    for annotation in wanted[:-1]:
        try:
            return checked(where, value, annotation)
        except InputError:
            continue
    return checked(where, value, wanted[-1])


def call_checked(what: str, function: Callable[..., Any], options: Mapping[str, Any], **fixed: Any) -> Any:
    """Call a function or constructor with options from outside, checked against its signature.

    Args:
        what: what is being made, for messages.
        function: takes keyword arguments with annotations.
        options: from outside; unknown ones are refused with the nearest name.
        **fixed: further arguments, not open to the outside.
    """
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    if target is object.__init__:
        known: list[str] = []
    else:
        known = [name for name in inspect.signature(function).parameters if name not in fixed]
    check_names(f"option of {what}", options, known)
    hints = typing.get_type_hints(target)
    values = {name: checked(f"{name} of {what}", value, hints.get(name, Any)) for name, value in options.items()}
    return function(**fixed, **values)
