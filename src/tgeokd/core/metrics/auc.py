"""`auc`: area under the ROC curve, for two classes."""

from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metrics, RankingMetric, log_odds
from tgeokd.utils.errors import InputError


@METRICS.register("auc")
class AUC(RankingMetric):
    """Area under the ROC curve of class 1; two classes only."""

    title = "AUC"

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The area; the score is the softmax probability of class 1."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(target.numpy(), log_odds(logits, [1])))

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Refuse other numbers of classes than two, and labels of one class."""
        if num_classes != 2:
            raise InputError(f"metric 'auc' is for 2 classes, not {num_classes}; use 'macro_auc'")
        super().check(target, num_classes, settings)
