"""`macro_auc`: area under the ROC curve averaged over the classes."""

import numpy as np
from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metrics, RankingMetric, log_odds


@METRICS.register("macro_auc")
class MacroAUC(RankingMetric):
    """Mean over the classes that occur in the labels of the area under the ROC curve of that class against the others."""

    title = "macro AUC"

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The mean over the classes; the score is the softmax probability of the class."""
        from sklearn.metrics import roc_auc_score

        areas = [roc_auc_score((target == c).numpy(), log_odds(logits, [c])) for c in target.unique().tolist()]
        return float(np.mean(areas))
