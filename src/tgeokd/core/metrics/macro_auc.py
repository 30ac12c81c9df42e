"""`macro_auc`: area under the ROC curve averaged over the classes."""

import math

import numpy as np
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.areas import RocAreas
from tgeokd.core.metrics.base import METRICS, Metrics, RankingMetric, log_odds_of_each


@METRICS.register("macro_auc")
class MacroAUC(RankingMetric):
    """Mean over the classes that occur in the labels of the area under the ROC curve of that class against the others."""

    title = "macro AUC"

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The mean over the classes; the score is the softmax probability of the class."""
        return _MeanArea(num_classes)


class _MeanArea(Accumulator):
    def __init__(self, num_classes: int) -> None:
        # at even odds of all classes the shifted score is 0
        self._areas = RocAreas("macro_auc", num_classes, shift=math.log(max(num_classes - 1, 1)))

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._areas.update(log_odds_of_each(logits), target)

    def compute(self) -> float:
        return float(np.mean(list(self._areas.compute().values())))
