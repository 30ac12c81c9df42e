"""Models: one file per family, and their registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgeokd.models.registry import MODELS
from tgeokd.utils.validation import call_validated

if TYPE_CHECKING:
    from torch import nn

    from tgeokd.data.base import InputSpec

__all__ = ["MODELS", "build_model"]


def build_model(name: str, /, *, inputs: InputSpec, num_classes: int, **options: Any) -> nn.Module:
    """A freshly initialized model by its name.

    Args:
        name: a key of :data:`MODELS`, or ``timm:NAME`` or ``torchvision:NAME`` for a model of these libraries.
        inputs: description of the data's inputs.
        num_classes: C.
        **options: of the model.
    """
    if ":" in name:
        from tgeokd.models.hub import hub_model

        return hub_model(name, inputs=inputs, num_classes=num_classes, **options)
    model: nn.Module = call_validated(f"model {name!r}", MODELS[name], options, inputs=inputs, num_classes=num_classes)
    return model
