"""Loading the weights of a model from a file, without running code that the file contains."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tgeokd.utils.errors import InputError, first_line
from tgeokd.utils.files import user_path
from tgeokd.utils.integrity import verify_checksum
from tgeokd.utils.limits import check_zip

HOLDERS = ("model", "state_dict", "model_state_dict", "net")
WRAPPERS = ("model", "student", "net", "network", "backbone", "module", "_orig_mod")
"""Under which a Lightning module, DataParallel or torch.compile holds a model; removed where all names share one of them."""

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

    A checkpoint is a state dict, or contains one under ``model``, ``state_dict`` (Lightning), ``model_state_dict`` or ``net``.
    Where names are not the model's, prefixes that all of them share are removed (``module.`` of ``DataParallel``; ``model.``,
    ``student.`` or ``net.`` of a Lightning module), and ``_orig_mod.`` of ``torch.compile`` anywhere. A checkpoint may contain
    only tensors, plain values, ``argparse.Namespace`` and NumPy scalars; other pickled objects are refused.

    Raises:
        InputError: for a file that is missing, unreadable, or contains other objects or no state dict, and for names or shapes
            that differ from the model's; the model is then unchanged.
    """
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"the file of weights {path} does not exist")
    verify_checksum(path, "the file of weights")
    given = _state_dict(_safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path), path)
    expected = model.state_dict()
    given = _renamed(given, expected)
    _compare(given, expected, path)
    model.load_state_dict(dict(given))  # without the version that an ordered one may have


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # whatever a damaged header makes it raise
        raise InputError(f"{path} cannot be read as safetensors: {first_line(error)}") from error


def _checkpoint(path: Path) -> Any:
    check_zip(path)
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


def _renamed(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights without the prefixes of wrappers, where that makes more of their names those of the model."""
    best, candidate = given, dict(given)
    while True:
        first = {name.partition(".")[0] for name in candidate}
        if len(first) == 1 and first.issubset(WRAPPERS) and all("." in name for name in candidate):
            candidate = {name.partition(".")[2]: value for name, value in candidate.items()}
        else:  # of a compiled part
            shorter = {
                ".".join(part for part in name.split(".") if part != "_orig_mod"): v for name, v in candidate.items()
            }
            if len(shorter) < len(candidate) or shorter.keys() == candidate.keys():
                return best
            candidate = shorter
        if len(expected.keys() & candidate.keys()) > len(expected.keys() & best.keys()):
            best = candidate


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
    for part in sorted({name.partition(".")[0] for name in given}) if text else ():
        inner = {name.partition(".")[2] for name in given if name.startswith(f"{part}.")}
        if inner.issuperset(required):
            text += f". Those under {part!r} have the names of the model: save these alone, without the prefix"
            break
    if text:
        raise InputError(f"the weights in {path} do not match the model: {text}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
