"""Public names of a package that are imported when first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_attributes"]


def lazy_attributes(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Module-level ``__getattr__`` and ``__dir__`` of a package whose names are imported when first used.

    Args:
        package: ``__name__`` of the package.
        places: the module that defines each name. A submodule of the package stands for itself:
            ``{"losses": "tgeokd.losses"}``.

    Example:
        In a package's ``__init__.py``, with the real imports for type checkers and editors::

            if TYPE_CHECKING:
                from tgeokd.methods.tgeo import TGeoKD as TGeoKD
            else:
                __getattr__, __dir__ = lazy_attributes(__name__, {"TGeoKD": "tgeokd.methods.tgeo"})
    """

    def load(name: str) -> Any:
        place = places.get(name)
        if place is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        module = import_module(place)
        value = module if place == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return load, names
