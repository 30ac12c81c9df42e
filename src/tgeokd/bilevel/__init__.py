"""The bilevel part: the derivative of the validation loss after a training step with respect to its fusion ratios."""

from tgeokd.bilevel.estimators import ESTIMATORS, DirectionalEstimator, Estimator, build_estimator
from tgeokd.bilevel.outer_direction import OuterDirection
from tgeokd.bilevel.ratio_gradient import ratio_gradient
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.bilevel.terms import FusedTerms, LossTerms

__all__ = [
    "ESTIMATORS",
    "DirectionalEstimator",
    "Estimator",
    "FusedTerms",
    "LossTerms",
    "MicroBatch",
    "OuterDirection",
    "StepRecord",
    "build_estimator",
    "ratio_gradient",
]
