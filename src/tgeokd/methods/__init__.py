"""Methods: who decides the fusion ratio of a sample. One file per method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgeokd.methods.registry import METHODS
from tgeokd.utils.deprecation import renames_of
from tgeokd.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from tgeokd.methods.base import ForwardContext, LossInputs, Method, Outer, SampleLoss
else:
    _NAMES = ("ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss")
    __getattr__, __dir__ = lazy_attributes(__name__, dict.fromkeys(_NAMES, "tgeokd.methods.base"))

__all__ = ["METHODS", "ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss", "build_method", "current_names"]


def current_names(method: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A method and its options under today's names; an earlier one is accepted with a ``DeprecationWarning``."""
    known = METHODS.renamed.get(method, method)
    renamed = renames_of(METHODS[known]) if known in METHODS else {}
    for old, new in {method: known, **{name: renamed[name] for name in options if name in renamed}}.items():
        if old != new:
            warnings.warn(f"{old!r} is now called {new!r}", DeprecationWarning, stacklevel=2)
    return known, {renamed.get(name, name): value for name, value in options.items()}


def build_method(name: str, /, **options: Any) -> Method:
    """A method by its name.

    Args:
        name: in :data:`METHODS`.
        **options: the constructor's arguments.

    Raises:
        InputError: for an unknown method or option (with the nearest name), or an impossible value.

    Example:
        >>> build_method("kd", alpha=0.5).constant
        0.5
    """
    from tgeokd.utils.validation import call_validated

    method: Method = call_validated(f"method {name!r}", METHODS[name], options)
    return method
