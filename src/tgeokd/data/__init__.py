"""Data sets and tasks."""

from typing import TYPE_CHECKING

from tgeokd.data.tasks.registry import TASKS
from tgeokd.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from tgeokd.data.base import Encoder, InputSpec, TaskData
else:
    _NAMES = ("Encoder", "InputSpec", "TaskData")
    __getattr__, __dir__ = lazy_attributes(__name__, dict.fromkeys(_NAMES, "tgeokd.data.base"))

__all__ = ["TASKS", "Encoder", "InputSpec", "TaskData"]
