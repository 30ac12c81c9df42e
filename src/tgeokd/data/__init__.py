"""Data sets: one file each, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tgeokd.data.base import Encoder, InputSpec, TaskData
from tgeokd.utils.registry import Lazy

__all__ = ["TASKS", "Encoder", "InputSpec", "TaskData"]

TASKS: Mapping[str, Callable[..., TaskData]] = Lazy(
    {
        "digits": "tgeokd.data.tasks.digits:digits",
        "cifar10": "tgeokd.data.tasks.cifar:cifar10",
        "cifar100": "tgeokd.data.tasks.cifar:cifar100",
        "imagenet": "tgeokd.data.tasks.imagenet:imagenet",
        "hil": "tgeokd.data.tasks.hil:hil",
        "nsl_kdd": "tgeokd.data.tasks.nsl_kdd:nsl_kdd",
        "criteo": "tgeokd.data.tasks.criteo:criteo",
        "tabular": "tgeokd.data.tasks.tabular:tabular",
        "adult": "tgeokd.data.tasks.tabular:adult",
    }
)
