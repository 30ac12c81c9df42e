"""`accuracy`: share of samples whose largest logit is the one of the label."""

from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("accuracy")
class Accuracy(Metric):
    """Share of samples whose largest logit is the one of the label, in [0, 1]."""

    title, factor, digits = "accuracy, %", 100, 2

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The share of the samples."""
        return float((logits.argmax(dim=1) == target).double().mean())
