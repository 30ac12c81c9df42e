"""What a metric is, the metrics of a task, and how a metric is shown in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator, Value
from tgeokd.core.metrics.running import MetricsAccumulator
from tgeokd.core.validation import validate_labels
from tgeokd.utils.errors import InputError, check_names
from tgeokd.utils.registry import Registry

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Metric:
    """Base of all metrics. A subclass gives :attr:`title`, and :meth:`compute` or :meth:`accumulator`; all else is optional.

    A metric with :meth:`compute` alone is given the logits of all samples at once, which are kept until then.
    """

    name: ClassVar[str]  # set by the registry
    title: ClassVar[str]  # column heading in tables; of a metric per class, with ``{}`` for the name of the class
    higher_is_better: ClassVar[bool] = True
    factor: ClassVar[int] = 1  # tables show the value times this factor,
    digits: ClassVar[int] = 4  # with this number of decimals
    per_class: ClassVar[bool] = False  # whether :meth:`compute` returns one value per class

    def compute(self, logits: Tensor, target: Tensor, settings: Metrics) -> Value:
        """The value for one set of samples; of a metric per class, one value by class index.

        Args:
            logits: shape (N, C), float64, finite, on the CPU.
            target: class indices, shape (N,), int64; :meth:`check` accepts them.
            settings: class names and attack classes of the task.
        """
        accumulator = self.accumulator(logits.shape[1], settings)
        accumulator.update(logits, target)
        return accumulator.compute()

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """What computes the same batch by batch, for a set with C classes; InputError where the metric is not for so many."""
        raise NotImplementedError

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Raise :class:`InputError` where the metric is not defined for these labels, (N,), in any order."""

    def check_settings(self, settings: Metrics) -> None:
        """Raise :class:`InputError` where a setting that the metric needs is missing."""


METRICS: Registry[type[Metric]] = Registry("metric", "tgeokd.core.metrics", group="tgeokd.metrics")


class RankingMetric(Metric):
    """Base of the metrics that compare the scores of two classes."""

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Refuse labels of one class only."""
        present = target.unique().tolist()
        if len(present) < 2:
            only = settings.class_name(present[0])
            raise InputError(f"metric {self.name!r} needs two classes in the labels; all are {only!r}")


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """Log odds of a set of classes, a mask of shape (C,), against the others: float64, shape (N,).

    They order the samples as the probability does, without saturation: in float64 a probability is 1 from a difference of 37
    between the logits on, and different samples would tie. Rounded to 9 decimals, so that rounding errors of the sum do not
    order equal samples.
    """
    z = logits.double()
    inside, outside = z.masked_fill(~chosen, -torch.inf), z.masked_fill(chosen, -torch.inf)
    return (inside.logsumexp(dim=1) - outside.logsumexp(dim=1)).round(decimals=9)


def log_odds_of_each(logits: Tensor) -> Tensor:
    """Log odds of each class against all others, likewise, shape (N, C)."""
    z = logits.double()
    highest, first = z.max(dim=1, keepdim=True)
    z = z - highest
    powers = z.exp()
    # But for the class with the highest logit, the others sum to at least 1, so that the difference loses no digits.
    odds = z - (powers.sum(dim=1, keepdim=True) - powers).log()
    of_first = -z.scatter(1, first, -torch.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, first, of_first).round(decimals=9)


@dataclass(frozen=True)
class Metrics:
    """The metrics of a task, all computed in float64 from the logits (N, C) and the labels (N,) of one set.

    Classes that do not occur in the labels are left out of means over classes.

    Raises:
        InputError: for an unknown name, or a setting that a metric needs and that is missing.
    """

    # keys of METRICS; a metric per class has one key "name/class name" per class in the result
    names: tuple[str, ...] = ("accuracy", "nll")
    primary: str = "accuracy"  # the one that methods are compared by, not one per class
    attack_classes: tuple[int, ...] = ()  # class indices that count as an attack; all others are normal
    class_names: tuple[str, ...] = ()  # of the C classes
    # the one that hyper-parameters are chosen by on the validation set; by default ``primary``: a mean over classes is decided
    # by chance where a class has few validation samples
    choose_by: str = ""

    def __post_init__(self) -> None:
        if not self.choose_by:
            object.__setattr__(self, "choose_by", self.primary)
        single = [name for name in self.names if not METRICS[name].per_class]
        check_names("primary metric", [self.primary], single)
        check_names("metric to choose by", [self.choose_by], single)
        for name in self.names:
            METRICS[name]().check_settings(self)

    def __call__(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """All metrics of a set, by name, from finite logits (N, C) of any device and dtype and class indices (N,).

        Raises:
            InputError: for logits that are not finite, and where a metric is not defined for the labels (an area with one
                class only, a detection rate without attacks).
        """
        accumulator = self.accumulator()
        accumulator.update(logits, target)
        return accumulator.compute()

    def accumulator(self) -> MetricsAccumulator:
        """What computes the same batch by batch, without keeping the logits of all samples."""
        return MetricsAccumulator(self)

    def accumulators(self, num_classes: int) -> dict[str, Accumulator]:
        """Of each metric, for a set with C classes."""
        found: dict[str, Accumulator] = {}
        for name in self.names:
            metric = METRICS[name]()
            streams = _defined_last(type(metric), "accumulator", "compute") == "accumulator"
            found[name] = metric.accumulator(num_classes, self) if streams else _AllLogits(metric, self)
        return found

    def check(self, target: Tensor, num_classes: int) -> None:
        """Raise the InputError that computing the metrics on these labels would raise, without any prediction."""
        validate_labels(target, num_classes, "set to evaluate")
        if len(target) == 0:
            raise InputError("the set to evaluate is empty")
        for name in self.names:
            METRICS[name]().check(target, num_classes, self)

    def class_name(self, index: int) -> str:
        """Name of a class; its index where it has none."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


class _AllLogits(Accumulator):
    """Keeps all logits, for a metric that is computed from them at once."""

    def __init__(self, metric: Metric, settings: Metrics) -> None:
        self._metric, self._settings = metric, settings
        self._batches: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._batches.append((logits.clone(), target.clone()))

    def compute(self) -> Value:
        logits, target = (torch.cat(each) for each in zip(*self._batches, strict=True))
        return self._metric.compute(logits.to("cpu", torch.float64), target.cpu(), self._settings)


def _defined_last(cls: type, *names: str) -> str:
    """Which of the names the most derived class defines, the first of several: a subclass may override another one."""
    return next(name for base in cls.__mro__ for name in names if name in vars(base))


def higher_is_better(key: str) -> bool:
    """Direction of a metric, by its name or its key in a result such as ``recall/normal``."""
    return METRICS[key.partition("/")[0]].higher_is_better


def best_index(values: Sequence[float], metric: str) -> int:
    """Index of the best value of a metric; the first of equals."""
    return values.index(max(values) if higher_is_better(metric) else min(values))


def title(key: str) -> str:
    """Column heading of a metric, by its name or its key in a result."""
    name, _, class_name = key.partition("/")
    return METRICS[name].title.format(class_name or "each class")


def formatted(key: str, mean: float | None, sd: float | None = None) -> str:
    """A value of a metric as text, with its standard deviation where given; ``-`` for None."""
    if mean is None:
        return "-"
    metric = METRICS[key.partition("/")[0]]
    spread = "" if sd is None else f" ± {metric.factor * sd:.{metric.digits}f}"
    return f"{metric.factor * mean:.{metric.digits}f}{spread}"
