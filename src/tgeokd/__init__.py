"""Knowledge distillation that learns, for every sample, how much to trust the teacher and how much the label."""

from typing import TYPE_CHECKING

from tgeokd.utils.lazy import lazy_attributes

__version__ = "0.2.0.dev0"

_PLACES = {
    "AdaptiveKD": "tgeokd.methods.ada",
    "AnnealingKD": "tgeokd.methods.anl",
    "CrossEntropy": "tgeokd.methods.ce",
    "DecoupledKD": "tgeokd.methods.dkd",
    "DistillationStep": "tgeokd.training.step",
    "Distiller": "tgeokd.training.distiller",
    "EntropyAdaptiveKD": "tgeokd.methods.eakd",
    "GeneralizedCrossEntropy": "tgeokd.methods.gce",
    "History": "tgeokd.training.distiller",
    "LossInputs": "tgeokd.methods.base",
    "LogitStandardizationKD": "tgeokd.methods.lskd",
    "MetaWeightNet": "tgeokd.methods.mwnet",
    "Method": "tgeokd.methods.base",
    "PosteriorKD": "tgeokd.methods.posterior",
    "RefinedLogitKD": "tgeokd.methods.rld",
    "ReweightingKD": "tgeokd.methods.rw",
    "TGeoKD": "tgeokd.methods.tgeo",
    "VanillaKD": "tgeokd.methods.kd",
    "WeightedSoftLabelKD": "tgeokd.methods.wls",
    "bilevel": "tgeokd.bilevel",
    "build_method": "tgeokd.methods",
    "geometry": "tgeokd.geometry",
    "losses": "tgeokd.losses",
}

if TYPE_CHECKING:
    from tgeokd import bilevel as bilevel
    from tgeokd import geometry as geometry
    from tgeokd import losses as losses
    from tgeokd.methods import build_method as build_method
    from tgeokd.methods.ada import AdaptiveKD as AdaptiveKD
    from tgeokd.methods.anl import AnnealingKD as AnnealingKD
    from tgeokd.methods.base import LossInputs as LossInputs
    from tgeokd.methods.base import Method as Method
    from tgeokd.methods.ce import CrossEntropy as CrossEntropy
    from tgeokd.methods.dkd import DecoupledKD as DecoupledKD
    from tgeokd.methods.eakd import EntropyAdaptiveKD as EntropyAdaptiveKD
    from tgeokd.methods.gce import GeneralizedCrossEntropy as GeneralizedCrossEntropy
    from tgeokd.methods.kd import VanillaKD as VanillaKD
    from tgeokd.methods.lskd import LogitStandardizationKD as LogitStandardizationKD
    from tgeokd.methods.mwnet import MetaWeightNet as MetaWeightNet
    from tgeokd.methods.posterior import PosteriorKD as PosteriorKD
    from tgeokd.methods.rld import RefinedLogitKD as RefinedLogitKD
    from tgeokd.methods.rw import ReweightingKD as ReweightingKD
    from tgeokd.methods.tgeo import TGeoKD as TGeoKD
    from tgeokd.methods.wls import WeightedSoftLabelKD as WeightedSoftLabelKD
    from tgeokd.training.distiller import Distiller as Distiller
    from tgeokd.training.distiller import History as History
    from tgeokd.training.step import DistillationStep as DistillationStep
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _PLACES)
    __all__ = list(_PLACES)
