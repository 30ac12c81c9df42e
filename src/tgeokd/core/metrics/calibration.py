"""`calibration`: expected calibration error."""

import numpy as np
import torch
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.base import METRICS, Bools, Floats, Metric, Metrics

BINS = 15


@METRICS.register("calibration")
class Calibration(Metric):
    """:func:`calibration_error` of the probability of class 1 with two classes, of the largest probability with more."""

    title, higher_is_better = "calibration error", False

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The error; with more than two classes, the event is that the prediction is correct."""
        return _Calibration()


class _Calibration(Accumulator):
    def __init__(self) -> None:
        self._confidence: list[Tensor] = []
        self._outcome: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        p = logits.double().softmax(dim=1)
        if logits.shape[1] == 2:
            confidence, outcome = p[:, 1].clone(), target == 1
        else:
            confidence, outcome = p.max(dim=1).values, logits.argmax(dim=1) == target
        self._confidence.append(confidence)
        self._outcome.append(outcome)

    def compute(self) -> float:
        return calibration_error(torch.cat(self._confidence).cpu().numpy(), torch.cat(self._outcome).cpu().numpy())


def calibration_error(confidence: Floats, outcome: Bools, bins: int = BINS) -> float:
    """Expected calibration error: ``sum_b n_b / N |mean confidence - share of outcomes|`` over bins of equal count.

    Samples of equal confidence share a bin, so that their order does not matter. Equal-count bins: Nguyen and O'Connor,
    "Posterior calibration and exploratory analysis for natural language processing models", EMNLP 2015.

    Args:
        confidence: probability given to the event, shape (N,).
        outcome: whether it happened, shape (N,), bool.
        bins: number of bins.
    """
    rank = np.searchsorted(np.sort(confidence), confidence, side="left")
    index = rank * bins // len(confidence)
    gap = np.bincount(index, weights=confidence - outcome, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
