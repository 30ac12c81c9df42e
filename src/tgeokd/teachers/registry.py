"""The classifiers that can be chosen by name as a teacher."""

from collections.abc import Callable
from typing import Any

from tgeokd.utils.registry import Registry

CLASSIFIERS: Registry[Callable[..., Any]] = Registry("classifier", "tgeokd.teachers", group="tgeokd.classifiers")
"""Functions from keyword arguments to an unfitted classifier with ``predict_proba``.

Each takes ``inputs``, ``num_classes`` and ``seed``, and its own options, which have types and defaults.
"""
