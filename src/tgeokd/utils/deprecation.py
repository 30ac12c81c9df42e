"""Earlier names of arguments, accepted with a warning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """A decorator that accepts earlier names of keyword arguments, ``earlier="new"``, with a ``DeprecationWarning``.

    A call that gives an argument under both names is a ``TypeError``.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{new!r} is given twice, once under its earlier name {old!r}")
                warnings.warn(f"argument {old!r} is now called {new!r}", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        wrapper.renamed_arguments = names  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate


def renames_of(function: Callable[..., Any]) -> dict[str, str]:
    """Earlier names of a function's or constructor's arguments and the names that replace them."""
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    return getattr(target, "renamed_arguments", {})
