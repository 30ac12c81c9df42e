"""`nll`: negative log-likelihood, also known as log loss."""

import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator, ExactSum
from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("nll")
class NegativeLogLikelihood(Metric):
    """Mean cross-entropy with the label, in nats."""

    title, higher_is_better = "NLL", False

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The mean over the samples."""
        return _MeanLoss()


class _MeanLoss(Accumulator):
    def __init__(self) -> None:
        self._samples, self._sum = 0, ExactSum()

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._samples += len(target)
        self._sum.add(F.cross_entropy(logits.double(), target, reduction="sum"))

    def compute(self) -> float:
        return float(self._sum) / self._samples
