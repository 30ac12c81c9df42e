"""Data sets and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgeokd.data.tasks.registry import TASKS

if TYPE_CHECKING:
    from tgeokd.data.base import Encoder, InputSpec, TaskData

__all__ = ["TASKS", "Encoder", "InputSpec", "TaskData"]


def __getattr__(name: str) -> Any:
    """Import the classes, and with them PyTorch, when they are first used."""
    if name in __all__:
        from tgeokd.data import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
