"""`macro_f1`: F1 averaged over the classes."""

from torch import Tensor

from tgeokd.core.metrics.base import METRICS, Metric, Metrics


@METRICS.register("macro_f1")
class MacroF1(Metric):
    """Mean over the classes that occur in the labels of ``2 TP / (2 TP + FP + FN)``."""

    title, factor, digits = "macro F1, %", 100, 2

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float:
        """The mean over the classes. Classes that are only predicted are left out, so that all models have the same ones."""
        from sklearn.metrics import f1_score

        labels = target.unique().numpy()
        return float(f1_score(target.numpy(), logits.argmax(dim=1).numpy(), labels=labels, average="macro"))
