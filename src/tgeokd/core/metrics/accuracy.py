"""`accuracy`: share of samples whose largest logit is the one of the label."""

from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metrics, Percent


@METRICS.register("accuracy")
class Accuracy(Percent):
    """Share of samples whose largest logit is the one of the label, in [0, 1]."""

    title = "accuracy, %"

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The share of the samples."""
        return float((logits.argmax(dim=1) == target).double().mean())
