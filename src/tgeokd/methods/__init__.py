"""Who decides alpha: one file a method, and the registry of their names."""

from __future__ import annotations

from typing import Any

from tgeokd.methods.ada import AdaptiveKD
from tgeokd.methods.anl import AnnealingKD
from tgeokd.methods.base import Batch, Method, Outer, SampleLoss, Signals, TrainingStep
from tgeokd.methods.ce import CrossEntropy
from tgeokd.methods.dkd import DecoupledKD
from tgeokd.methods.kd import VanillaKD
from tgeokd.methods.lskd import LogitStandardizationKD
from tgeokd.methods.rw import ReweightingKD
from tgeokd.methods.tgeo import RatioNetwork, TGeoKD
from tgeokd.methods.wls import WeightedSoftLabelKD
from tgeokd.utils.registry import look_up
from tgeokd.utils.validation import call_validated

__all__ = [
    "METHODS",
    "AdaptiveKD",
    "AnnealingKD",
    "Batch",
    "CrossEntropy",
    "DecoupledKD",
    "LogitStandardizationKD",
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
    for method in (
        CrossEntropy,
        VanillaKD,
        AnnealingKD,
        AdaptiveKD,
        WeightedSoftLabelKD,
        ReweightingKD,
        DecoupledKD,
        LogitStandardizationKD,
        TGeoKD,
    )
}


def build_method(name: str, /, **options: Any) -> Method:
    """A method by its name.

    Args:
        name: a key of :data:`METHODS`.
        **options: the constructor's arguments.

    Raises:
        InputError: for an unknown method or option (with the nearest name), or an impossible value.

    Example:
        >>> build_method("kd", alpha=0.5).constant
        0.5
    """
    method: Method = call_validated(f"method {name!r}", look_up("method", name, METHODS), options)
    return method
