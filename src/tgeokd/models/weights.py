"""Loading the weights of a model from a file, without running code that the file contains."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tgeokd.utils.errors import InputError, first_line
from tgeokd.utils.files import user_path

HOLDERS = ("model", "state_dict", "model_state_dict", "net")
PARALLEL = "module."  # prefix of torch.nn.DataParallel

# Published checkpoints also contain the arguments of the run, and learning rates and accuracies as NumPy scalars, whose
# constructor has another module since NumPy 2.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a ``.safetensors`` file or a PyTorch checkpoint into a model.

    A checkpoint is a state dict, or contains one under ``model``, ``state_dict``, ``model_state_dict`` or ``net``. The prefix
    ``module.`` of all names is removed. A checkpoint may contain only tensors, plain values, ``argparse.Namespace`` and NumPy
    scalars; other pickled objects are refused.

    Raises:
        InputError: for a file that is missing, unreadable, or contains other objects or no state dict, and for names or shapes
            that differ from the model's; the model is then unchanged.
    """
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"the file of weights {path} does not exist")
    given = _state_dict(_safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path), path)
    expected = model.state_dict()
    if all(name.startswith(PARALLEL) for name in given) and not all(name.startswith(PARALLEL) for name in expected):
        given = {name.removeprefix(PARALLEL): value for name, value in given.items()}
    _compare(given, expected, path)
    model.load_state_dict(dict(given))  # without the version that an ordered one may have


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {first_line(error)}") from error


def _checkpoint(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} contains {refused[1]}; only tensors, plain values, NumPy scalars and argparse.Namespace are allowed"
            ) from error
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint of weights") from error


def _state_dict(held: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint."""
    if not isinstance(held, Mapping):
        raise InputError(f"{path} must contain a state dict, not {type(held).__name__}")
    for found in (held, *map(held.get, HOLDERS)):
        if isinstance(found, Mapping) and found and all(_is_weight(*pair) for pair in found.items()):
            return found
    raise InputError(f"{path} contains {_some(list(map(str, held)))}, but no state dict under {', '.join(HOLDERS)}")


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _compare(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless names and shapes agree. Files older than PyTorch 0.4.1 have no ``num_batches_tracked``."""
    required = [name for name in expected if not name.endswith("num_batches_tracked")]
    shapes = [(name, tuple(given[name].shape), tuple(expected[name].shape)) for name in expected if name in given]
    problems = {
        "missing": [name for name in required if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": [f"{name} {found} for {wanted}" for name, found, wanted in shapes if found != wanted],
    }
    text = "; ".join(f"{len(names)} {problem}: {_some(names)}" for problem, names in problems.items() if names)
    if text:
        raise InputError(f"the weights in {path} do not match the model: {text}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
