"""Methods: who decides the fusion ratio of a sample. One file per method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgeokd.methods.registry import METHODS
from tgeokd.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from tgeokd.methods.base import ForwardContext, LossInputs, Method, Outer, SampleLoss
else:
    _NAMES = ("ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss")
    __getattr__, __dir__ = lazy_attributes(__name__, dict.fromkeys(_NAMES, "tgeokd.methods.base"))

__all__ = ["METHODS", "ForwardContext", "LossInputs", "Method", "Outer", "SampleLoss", "build_method"]


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
