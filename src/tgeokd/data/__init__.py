"""Data sets: one file each, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tgeokd.data.base import Encoder, InputSpec, TaskData
from tgeokd.names import Lazy

__all__ = ["TASKS", "Encoder", "InputSpec", "TaskData"]

TASKS: Mapping[str, Callable[..., TaskData]] = Lazy(
    {
        "digits": "tgeokd.data.digits:digits",
        "cifar10": "tgeokd.data.cifar:cifar10",
        "cifar100": "tgeokd.data.cifar:cifar100",
        "imagenet": "tgeokd.data.imagenet:imagenet",
        "hil": "tgeokd.data.hil:hil",
        "nsl_kdd": "tgeokd.data.nsl_kdd:nsl_kdd",
        "criteo": "tgeokd.data.criteo:criteo",
        "tabular": "tgeokd.data.tabular:tabular",
        "adult": "tgeokd.data.tabular:adult",
    }
)
