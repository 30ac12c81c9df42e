"""`nll`: negative log-likelihood, also known as log loss."""

import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("nll")
class NegativeLogLikelihood(Metric):
    """Mean cross-entropy with the label, in nats."""

    title, higher_is_better = "NLL", False

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The mean over the samples."""
        return float(F.cross_entropy(logits, target))
