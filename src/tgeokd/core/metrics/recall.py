"""`recall`: recall of each class."""

from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("recall")
class Recall(Metric):
    """Share of the samples of a class that are classified correctly, for each class that occurs in the labels."""

    title, factor, digits, per_class = "recall of {}, %", 100, 2, True

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> dict[int, float]:
        """The share of each class."""
        correct = (logits.argmax(dim=1) == target).double()
        return {c: float(correct[target == c].mean()) for c in target.unique().tolist()}
