"""Label noise: uniform, from how people confuse classes, and people's labels (CIFAR-N)."""

import _codecs
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgeokd.utils.errors import InputError, one_line


def symmetric_noise(target: Tensor, rate: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the labels, each by a class drawn uniformly from all classes.

    One in C of the replaced labels keeps its class, so the share of wrong labels is about ``rate (1 - 1 / C)``. (The other
    convention in use draws from the C - 1 wrong classes only; its rate is the share of wrong labels.)

    Args:
        target: class indices, shape (N,).
        rate: share of labels replaced, in [0, 1]; ``round(rate N)`` of them.
        num_classes: C.
        seed: seed of the draws.

    Returns:
        The noisy labels, shape (N,), and a mask of the wrong ones, shape (N,), bool.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"noise must lie in [0, 1], not {rate}")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(target))[: round(rate * len(target))]
    noisy = target.clone()
    noisy[chosen] = torch.from_numpy(generator.integers(0, num_classes, size=len(chosen)))
    return noisy, noisy != target


def confusion_noise(target: Tensor, counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw every label from the distribution of people's labels for its class.

    The noise is class-conditional: the new label depends on the true class alone, whereas people's own labels depend on the
    image. Results with it must not be reported as results on CIFAR-N.

    Args:
        target: class indices, shape (N,).
        counts: how often class ``row`` was labelled as class ``column``, int64, shape (C, C); no row is all zero.
        seed: seed of the draws.

    Returns:
        As :func:`symmetric_noise`.
    """
    generator = np.random.default_rng(seed)
    cumulative = counts.numpy().cumsum(axis=1)[target.numpy()]
    drawn = generator.integers(0, cumulative[:, -1])
    noisy = torch.from_numpy((drawn[:, None] >= cumulative).sum(axis=1))
    return noisy, noisy != target


def confusion_counts(clean: Tensor, noisy: Tensor, num_classes: int) -> Tensor:
    """How often class ``row`` was labelled as class ``column``, int64, shape (C, C)."""
    return torch.bincount(clean * num_classes + noisy, minlength=num_classes**2).view(num_classes, num_classes)


def read_confusion_counts(path: Path, num_classes: int) -> Tensor:
    """Confusion counts from a CSV file without a header: C rows (the true class) of C integers."""
    try:
        counts = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a table of integers: {one_line(error)}") from error
    rows, columns = counts.shape
    if not rows == columns == num_classes:
        raise InputError(f"{path} must have {num_classes} x {num_classes} counts, not {rows} x {columns}")
    bad = (counts < 0).any(axis=1) | ~counts.any(axis=1)
    if bad.any():
        raise InputError(f"{path}: row {bad.argmax()} must have counts >= 0 that are not all zero")
    return torch.from_numpy(counts)


def read_human_labels(path: Path, keys: Sequence[str], num_classes: int) -> dict[str, Tensor]:
    """Labels from a file of the CIFAR-N release (``CIFAR-10_human.pt``, ``CIFAR-100_human.pt``), in the official row order.

    Source: Wei, Zhu, Cheng, Liu, Niu and Liu, "Learning with Noisy Labels Revisited", ICLR 2022.

    Returns:
        The label arrays named by ``keys``: class indices, int64, each of shape (N,).
    """
    kinds = [type(np.dtype(code)) for code in np.typecodes["AllInteger"]]
    reconstruct: Any = np.empty(0).__reduce__()[0]
    old_name = (reconstruct, "numpy.core.multiarray._reconstruct")  # the official files were written by NumPy 1
    try:
        with torch.serialization.safe_globals([reconstruct, old_name, np.ndarray, np.dtype, _codecs.encode, *kinds]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is damaged or has contents other than integer arrays") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = one_line(error).partition(". ")[0]
        raise InputError(f"{path} is not a file of CIFAR-N labels: {first or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must have a dictionary of labels, not {type(content).__name__}")
    labels = {}
    for key in keys:
        if content.get(key) is None:
            raise InputError(f"{path} has no {key!r}, but {', '.join(map(str, content))}")
        array = np.asarray(content[key])
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{path}: {key!r} must have integers of shape (N,), not of shape {array.shape}")
        unknown = (array < 0) | (array >= num_classes)
        if unknown.any():
            row, known = int(unknown.argmax()), f"classes are 0 to {num_classes - 1}"
            raise InputError(f"{path}: {key!r} row {row} has label {array[row]}, but {known}")
        labels[key] = torch.from_numpy(array.astype(np.int64))
    if len({len(label) for label in labels.values()}) > 1:
        raise InputError(f"{path}: {', '.join(map(repr, keys))} differ in length")
    return labels
