"""Data sets: one file each, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable

from tgeokd.data.base import TaskData, symmetric_noise
from tgeokd.data.digits import digits

__all__ = ["TASKS", "TaskData", "symmetric_noise"]

TASKS: dict[str, Callable[..., TaskData]] = {"digits": digits}
