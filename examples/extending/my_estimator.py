"""An estimator of the hypergradient: ``last_layer`` without outliers."""

from torch import Tensor

from tgeokd.bilevel.estimators.base import OuterBatch
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.bilevel.record import StepRecord


class ClampedEstimator(LastLayerEstimator):
    """``last_layer`` with values clamped to three times their median magnitude, so that no sample dominates a step."""

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """``d L_val / d alpha_i``, shape (N,)."""
        gradient = super().estimate(record, outer_batch)
        bound = 3 * gradient.abs().median()
        return gradient.clamp(-bound, bound)
