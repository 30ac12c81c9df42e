"""Metrics of a classifier: one file per metric, their registry, and :class:`Metrics`, the ones of a task."""

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.base import METRICS, Metric, Metrics, best_index, formatted, higher_is_better, title
from tgeokd.core.metrics.calibration import calibration_error
from tgeokd.core.metrics.detection import detection_rate
from tgeokd.core.metrics.running import MetricsAccumulator

__all__ = [
    "METRICS",
    "Accumulator",
    "Metric",
    "Metrics",
    "MetricsAccumulator",
    "best_index",
    "calibration_error",
    "detection_rate",
    "formatted",
    "higher_is_better",
    "title",
]
