"""The models by name. Importing this file does not import PyTorch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tgeokd.utils.registry import Registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS"]

Builder = TypeVar("Builder", bound="Callable[..., nn.Module]")


class ModelRegistry(Registry[Any]):
    """Functions that take ``inputs``, ``num_classes`` and the options of a model as keyword arguments."""

    def register(self, name: str, *arguments: Any) -> Callable[[Builder], Builder]:  # type: ignore[override]
        """A decorator that adds a function under a name.

        Args:
            name: of the model.
            *arguments: positional arguments of the function under this name, where the models of a family share one function.
        """
        add = super().register(name)

        def add_variant(build: Builder) -> Builder:
            @functools.wraps(build)
            def variant(**options: Any) -> nn.Module:
                return build(*arguments, **options)

            # the arguments that the name stands for are not options of the model
            variant.__signature__ = inspect.signature(functools.partial(build, *arguments))  # type: ignore[attr-defined]
            add(variant)
            return build

        return add_variant if arguments else add


MODELS = ModelRegistry("model", "tgeokd.models", group="tgeokd.models")
