"""Weights from a file into a model: nothing else of the file is used, and nothing in it is run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tgeokd.utils.errors import InputError, first_line

__all__ = ["load_weights"]

HOLDERS = ("model", "state_dict", "model_state_dict", "net")
PARALLEL = "module."  # torch.nn.DataParallel writes it before every name

# What published checkpoints hold beside tensors: the arguments of the run, and learning rates and accuracies as numpy scalars.
# numpy 2 renamed the module of the scalars' constructor; files carry either name.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
]


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a ``.safetensors`` file or a PyTorch checkpoint.

    A checkpoint is a state dict, or holds one under ``model``, ``state_dict``, ``model_state_dict`` or ``net``. A ``module.``
    before every name is dropped. A checkpoint is read without running its pickle: beside tensors and plain values only
    ``argparse.Namespace`` and numpy scalars may be in it.

    Args:
        model: changed in place, on the device it is on.
        path: the file.

    Raises:
        InputError: for a file that is missing, unreadable, holds other objects or no state dict, or whose names or shapes are
            not the model's; the model is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file of weights at {path}")
    held = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    expected = model.state_dict()
    given = _without_prefix(_state_dict(held, path), expected)
    _compare(given, expected, path)
    model.load_state_dict(given)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {first_line(error)}") from error


def _checkpoint(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with a file, it is the file that is wrong
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} holds {refused[1]}, and a file of weights may hold only tensors, plain values, numpy scalars and an "
                "argparse.Namespace"
            ) from error
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint of weights") from error


def _state_dict(held: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict itself or the one it is wrapped around."""
    if _is_state_dict(held):
        return held  # type: ignore[no-any-return]
    if isinstance(held, Mapping):
        for holder in HOLDERS:
            if _is_state_dict(held.get(holder)):
                return held[holder]  # type: ignore[no-any-return]
        raise InputError(f"{path} holds {_some(list(map(str, held)))}, and no state dict under {', '.join(HOLDERS)}")
    raise InputError(f"{path} must hold a state dict, not {type(held).__name__}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items())
    )


def _without_prefix(given: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    if all(name.startswith(PARALLEL) for name in given) and not all(name.startswith(PARALLEL) for name in expected):
        return {name.removeprefix(PARALLEL): value for name, value in given.items()}
    return dict(given)


def _compare(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless names and shapes agree. Files older than PyTorch 0.4.1 lack the batch norms' counters."""
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    misfits = [
        f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misfits))
        if names
    ]
    if problems:
        raise InputError(f"the weights in {path} are not this model's: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
