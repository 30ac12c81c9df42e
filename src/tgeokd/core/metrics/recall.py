"""`recall`: recall of each class."""

from tgeokd.core.metrics.accumulator import Accumulator, ClassCounts
from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("recall")
class Recall(Metric):
    """Share of the samples of a class that are classified correctly, for each class that occurs in the labels."""

    title, factor, digits, per_class = "recall of {}, %", 100, 2, True

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The share of each class."""
        return _Recall(num_classes)


class _Recall(ClassCounts, Accumulator):
    def compute(self) -> dict[int, float]:
        classes, labels, _, hits = self.present()
        return dict(zip(classes, (hits / labels).tolist(), strict=True))
