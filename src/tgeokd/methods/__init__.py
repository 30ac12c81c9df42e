"""Methods: who decides the fusion ratio of a sample. One file per method."""

from __future__ import annotations

from typing import Any

from tgeokd.methods.base import METHODS, ForwardContext, LossInputs, Method, Outer, SampleLoss
from tgeokd.utils.validation import call_validated

__all__ = ["METHODS", "ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss", "build_method"]


def build_method(name: str, /, **options: Any) -> Method:
    """A method by its name in :data:`METHODS`, with the arguments of its constructor.

    Raises:
        InputError: for an unknown method or option (with the nearest name), or an impossible value.

    Example:
        >>> build_method("kd", alpha=0.5).constant
        0.5
    """
    method: Method = call_validated(f"method {name!r}", METHODS[name], options)
    return method
