"""Reading tables and encoding their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgeokd.utils.errors import InputError
from tgeokd.utils.registry import Registry

if TYPE_CHECKING:
    from tgeokd.data.base import Encoder

__all__ = ["ENCODERS", "encoder_from_dict"]

ENCODERS: Registry[type[Encoder]] = Registry("kind of encoder", "tgeokd.data.tables")
"""Encoders by the ``kind`` in their stored form. That of a task is registered when the task's file is imported."""


def encoder_from_dict(content: Any) -> Encoder:
    """The encoder whose ``to_dict`` returned ``content``; the kind ``columns`` is not stored.

    Raises:
        InputError: where ``content`` is not a mapping, of an unknown kind or incomplete.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"a stored encoder must be a mapping, not {type(content).__name__}")
    return ENCODERS[str(content.get("kind", "columns"))].from_dict(content)
