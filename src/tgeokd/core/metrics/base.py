"""What a metric is, and the scores that the metrics share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.core.metrics.collection import Metrics

__all__ = ["Bools", "Floats", "Metric", "Percent", "RankingMetric", "log_odds"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Metric:
    """Base of all metrics. A subclass gives :attr:`title` and :meth:`compute`; everything else is optional.

    Attributes:
        name: set by the registry.
        title: column heading in tables; of a metric per class, with ``{}`` for the name of the class.
        higher_is_better: direction of the metric.
        factor: tables show the value times this factor,
        digits: with this number of decimals.
        per_class: whether :meth:`compute` returns one value per class.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    factor: ClassVar[int] = 1
    digits: ClassVar[int] = 4
    per_class: ClassVar[bool] = False

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> float | dict[int, float]:
        """The value for one set of samples.

        Args:
            logits: shape (N, C), float64, finite, on the CPU.
            target: class indices, shape (N,), int64; :meth:`check` accepts them.
            settings: class names and attack classes of the task.

        Returns:
            The value; of a metric per class, one value by class index.
        """
        raise NotImplementedError

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Raise :class:`InputError` where the metric is not defined for these labels."""

    def check_settings(self, settings: Metrics) -> None:
        """Raise :class:`InputError` where a setting that the metric needs is missing."""


class Percent(Metric):
    """Base of the metrics in [0, 1] that tables show in percent."""

    factor, digits = 100, 2


class RankingMetric(Metric):
    """Base of the metrics that compare the scores of two classes."""

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Refuse labels of one class only."""
        present = target.unique().tolist()
        if len(present) < 2:
            only = settings.class_name(present[0])
            raise InputError(f"metric {self.name!r} needs two classes in the labels; all are {only!r}")


def log_odds(logits: Tensor, classes: list[int]) -> Floats:
    """Log odds of a set of classes against the others, shape (N,).

    They order the samples as the probability does, without saturation: in float64 a probability is 1 from a difference of 37
    between the logits on, and different samples would tie. Rounded to 9 decimals, so that rounding errors of the sum do not
    order equal samples.
    """
    others = [c for c in range(logits.shape[1]) if c not in classes]
    return np.round((logits[:, classes].logsumexp(dim=1) - logits[:, others].logsumexp(dim=1)).numpy(), 9)
