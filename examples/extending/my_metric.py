"""A metric: the Brier score."""

import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.metrics import Metric, Metrics


class BrierScore(Metric):
    """Mean squared distance between the predicted probabilities and the one-hot label, in [0, 2]."""

    title = "Brier score"
    higher_is_better = False

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The mean over the samples."""
        one_hot = F.one_hot(target, logits.shape[1])
        return float((logits.softmax(dim=1) - one_hot).square().sum(dim=1).mean())
