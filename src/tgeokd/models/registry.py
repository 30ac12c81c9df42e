"""The models by name. Importing this file does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tgeokd.utils.registry import Registry

if TYPE_CHECKING:
    from torch import nn


Builder = TypeVar("Builder", bound="Callable[..., nn.Module]")


class ModelRegistry(Registry[Any]):
    """Classes or functions that take ``inputs``, ``num_classes`` and the options of a model as keyword arguments."""

    def register(self, name: str, *arguments: Any) -> Callable[[Builder], Builder]:  # type: ignore[override]
        """A decorator that adds a class or function, whose first arguments the name stands for if there are ``arguments``."""
        register = super().register(name)

        def add(build: Builder) -> Builder:
            variant = partial(build, *arguments)
            vars(variant).update(__module__=build.__module__, __qualname__=build.__qualname__)  # where it is defined
            register(variant)
            return build

        return add if arguments else register


MODELS = ModelRegistry("model", "tgeokd.models", group="tgeokd.models")
