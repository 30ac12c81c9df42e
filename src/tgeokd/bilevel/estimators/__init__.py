"""Estimators of the hypergradient ``d L_val / d alpha``, one file each."""

from tgeokd.bilevel.estimators.base import ESTIMATORS, DirectionalEstimator, Estimator, build_estimator

__all__ = ["ESTIMATORS", "DirectionalEstimator", "Estimator", "build_estimator"]
