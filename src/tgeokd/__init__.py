"""Knowledge distillation that learns, for every sample, how much to trust the teacher and how much the label."""

from tgeokd import bilevel, geometry, losses
from tgeokd.methods import (
    AdaptiveKD,
    AnnealingKD,
    CrossEntropy,
    DecoupledKD,
    LogitStandardizationKD,
    Method,
    ReweightingKD,
    Signals,
    TGeoKD,
    VanillaKD,
    WeightedSoftLabelKD,
    build_method,
)
from tgeokd.training.distiller import Distiller, History

__version__ = "0.1.0"

__all__ = [
    "AdaptiveKD",
    "AnnealingKD",
    "CrossEntropy",
    "DecoupledKD",
    "Distiller",
    "History",
    "LogitStandardizationKD",
    "Method",
    "ReweightingKD",
    "Signals",
    "TGeoKD",
    "VanillaKD",
    "WeightedSoftLabelKD",
    "bilevel",
    "build_method",
    "geometry",
    "losses",
]
