"""Models: one file a family, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tgeokd.models.mlp import mlp
from tgeokd.names import look_up
from tgeokd.typed import call_checked

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}


def build_model(name: str, /, *, in_features: int, num_classes: int, **options: Any) -> nn.Module:
    """A freshly initialised model by its name.

    Raises:
        InputError: for an unknown model or option (with the nearest name), or a value of the wrong type.
    """
    model: nn.Module = call_checked(
        f"model {name!r}", look_up("model", name, MODELS), options, in_features=in_features, num_classes=num_classes
    )
    return model
