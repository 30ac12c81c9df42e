"""The registry of estimators alone: importing it imports nothing heavy."""

from __future__ import annotations

from typing import Any

from tgeokd.utils.registry import Registry

__all__ = ["ESTIMATORS"]

ESTIMATORS: Registry[Any] = Registry("estimator", "tgeokd.bilevel.estimators", group="tgeokd.estimators")
