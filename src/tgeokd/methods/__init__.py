"""Who decides alpha: one file a method, and the registry of their names."""

from __future__ import annotations

import inspect
from typing import Any

from tgeokd.methods.ada import AdaptiveKD
from tgeokd.methods.anl import AnnealingKD
from tgeokd.methods.base import Batch, Method, Outer, SampleLoss, Signals, TrainingStep
from tgeokd.methods.ce import CrossEntropy
from tgeokd.methods.kd import VanillaKD
from tgeokd.methods.rw import ReweightingKD
from tgeokd.methods.tgeo import RatioNetwork, TGeoKD
from tgeokd.methods.wls import WeightedSoftLabelKD
from tgeokd.names import check_names, look_up

__all__ = [
    "METHODS",
    "AdaptiveKD",
    "AnnealingKD",
    "Batch",
    "CrossEntropy",
    "Method",
    "Outer",
    "RatioNetwork",
    "ReweightingKD",
    "SampleLoss",
    "Signals",
    "TGeoKD",
    "TrainingStep",
    "VanillaKD",
    "WeightedSoftLabelKD",
    "build_method",
]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (CrossEntropy, VanillaKD, AnnealingKD, AdaptiveKD, WeightedSoftLabelKD, ReweightingKD, TGeoKD)
}


def build_method(name: str, **options: Any) -> Method:
    """A method by its name.

    Args:
        name: a key of :data:`METHODS`.
        **options: the constructor's arguments.

    Raises:
        ValueError: for an unknown method or option (with the nearest name), or an impossible value.

    Example:
        >>> build_method("kd", alpha=0.5).constant
        0.5
    """
    method = look_up("method", name, METHODS)
    known = [] if method.__init__ is object.__init__ else list(inspect.signature(method).parameters)
    check_names(f"option of method {name!r}", options, known)
    return method(**options)
