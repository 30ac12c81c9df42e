"""Models: one file a family, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tgeokd.data.base import InputSpec
from tgeokd.models.bert import bert
from tgeokd.models.cifar import CIFAR_MODELS
from tgeokd.models.mlp import mlp
from tgeokd.models.wide_deep import wide_deep
from tgeokd.utils.registry import look_up
from tgeokd.utils.validation import call_validated, validate_value

__all__ = ["MODELS", "build_model"]

MODELS: Mapping[str, Callable[..., nn.Module]] = CIFAR_MODELS | {"mlp": mlp, "wide_deep": wide_deep, "bert": bert}
HUBS = ("timm:", "torchvision:")


def build_model(name: str, /, *, inputs: InputSpec, num_classes: int, **options: Any) -> nn.Module:
    """A freshly initialised model by its name.

    Args:
        name: a key of :data:`MODELS`, or ``timm:NAME`` or ``torchvision:NAME`` for any model of those libraries.
        inputs: what the data gives it.
        num_classes: C.
        **options: of the model.

    Raises:
        InputError: for an unknown model or option (with the nearest name), a value of the wrong type, or a model that does not
            take such inputs.
    """
    fixed: dict[str, Any] = {"inputs": inputs, "num_classes": num_classes}
    if name.startswith(HUBS):
        from tgeokd.models.hub import hub_model  # needs the extra `vision`

        validate_value(bool, options.get("pretrained", False), f"pretrained of model {name!r}")
        return hub_model(name, **fixed, **options)
    model: nn.Module = call_validated(f"model {name!r}", look_up("model", name, MODELS), options, **fixed)
    return model
