"""`auc`: area under the ROC curve, for two classes."""

from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.areas import RocAreas
from tgeokd.core.metrics.base import METRICS, Metrics, RankingMetric, log_odds_of_each
from tgeokd.utils.errors import InputError


@METRICS.register("auc")
class AUC(RankingMetric):
    """Area under the ROC curve of class 1; two classes only."""

    title = "AUC"

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The area; the score is the softmax probability of class 1."""
        _check_classes(num_classes)
        return _Area()

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Refuse other numbers of classes than two, and labels of one class."""
        _check_classes(num_classes)
        super().check(target, num_classes, settings)


def _check_classes(num_classes: int) -> None:
    if num_classes != 2:
        raise InputError(f"metric 'auc' is for 2 classes, not {num_classes}; use 'macro_auc'")


class _Area(Accumulator):
    def __init__(self) -> None:
        self._areas = RocAreas("auc", 1)

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._areas.update(log_odds_of_each(logits)[:, 1:].clone(), target - 1)

    def compute(self) -> float:
        return self._areas.compute()[0]
