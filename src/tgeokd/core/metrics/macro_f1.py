"""`macro_f1`: F1 averaged over the classes."""

from tgeokd.core.metrics.accumulator import Accumulator, ClassCounts
from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("macro_f1")
class MacroF1(Metric):
    """Mean over the classes that occur in the labels of ``2 TP / (2 TP + FP + FN)``."""

    title, factor, digits = "macro F1, %", 100, 2

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The mean over the classes. Classes that are only predicted are left out, so that all models have the same ones."""
        return _MacroF1(num_classes)


class _MacroF1(ClassCounts, Accumulator):
    def compute(self) -> float:
        _, labels, predicted, hits = self.present()
        return float((2 * hits / (labels + predicted)).mean())
