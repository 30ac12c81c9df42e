"""The state of a module without the names that ``torch.compile`` and ``DataParallel`` (also distributed) add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod."
PARALLEL = "module."


def plain_names(module: nn.Module) -> dict[str, str]:
    """The name of each entry of the module's state without the wrappers around the module and its parts, by its own name."""
    inserted = []  # the path of each wrapper, and what it adds
    for path, part in module.named_modules(remove_duplicate=False):
        added = _added_by(part)
        if added:
            inserted.append((f"{path}." if path else "", added))
    inserted.reverse()  # from the inside out, so that the outer paths stay as they are
    names = {}
    for name in module.state_dict():
        plain = name
        for path, added in inserted:
            if plain.startswith(path + added):
                plain = path + plain[len(path + added) :]
        names[name] = plain
    return names


def plain_state(module: nn.Module) -> dict[str, Any]:
    """The state of a module by the names that it has without wrappers."""
    names = plain_names(module)
    return {names[name]: value for name, value in module.state_dict().items()}


def load_plain_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what :func:`plain_state` returned, of this module with whatever wrappers, or the module's own ``state_dict``.

    Raises:
        RuntimeError: of :meth:`torch.nn.Module.load_state_dict`, for other names or shapes.
    """
    own = {plain: name for name, plain in plain_names(module).items()}
    module.load_state_dict({own.get(name, name): value for name, value in state.items()})


def _added_by(module: nn.Module) -> str:
    """What a wrapper adds to the names of the module in it; nothing for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return PARALLEL
    return COMPILED if isinstance(getattr(module, "_orig_mod", None), nn.Module) else ""
