"""The models by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tgeokd.utils.registry import Registry

__all__ = ["MODELS"]

MODELS: Registry[Callable[..., nn.Module]] = Registry("model", "tgeokd.models", group="tgeokd.models")
