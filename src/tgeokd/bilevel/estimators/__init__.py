"""Estimators of the hypergradient ``d L_val / d alpha``, one file each."""

from tgeokd.bilevel.estimators.base import DirectionalEstimator, Estimator, build_estimator
from tgeokd.bilevel.estimators.registry import ESTIMATORS

__all__ = ["ESTIMATORS", "DirectionalEstimator", "Estimator", "build_estimator"]
