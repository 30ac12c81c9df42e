"""The metrics by name."""

from tgeokd.core.metrics.base import Metric
from tgeokd.utils.registry import Registry

__all__ = ["METRICS"]

METRICS: Registry[type[Metric]] = Registry("metric", "tgeokd.core.metrics", group="tgeokd.metrics")
