"""Seeded stratified splits of row numbers, and oversampling of the rarer classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from tgeokd.utils.errors import InputError, missing_package

__all__ = ["Rows", "oversample", "stratified_split", "subset"]

Rows = NDArray[np.int64]


def stratified_split(
    target: NDArray[np.int64],
    *,
    held_out: int | float,
    test: int | float | None,
    seed: int,
    class_names: Sequence[str] = (),
) -> tuple[Rows, Rows, Rows]:
    """Row numbers of a training, a validation and a test set with equal class frequencies.

    Args:
        target: class indices, shape (N,).
        held_out: size of the validation set: a number of rows (int), or a share of the N rows (float).
        test: size of the test set; None for none.
        seed: seed of the split.
        class_names: names of the classes in messages; class indices by default.

    Returns:
        Row numbers in increasing order; the last array is empty with ``test=None``.

    Raises:
        InputError: where a split would lack a class, with the class and the number of its rows.
    """
    rows = np.arange(len(target), dtype=np.int64)
    sizes = {"held_out": _size("held_out", held_out, len(target))}
    if test is not None:
        sizes["test"] = _size("test", test, len(target))
    sizes = {"train": len(target) - sum(sizes.values())} | sizes
    counts = np.bincount(target)
    classes = np.flatnonzero(counts)
    counts = counts[classes]
    if counts.min(initial=len(sizes)) < len(sizes):
        rare = int(counts.argmin())
        raise InputError(
            f"class {_name(classes[rare], class_names)} has {counts[rare]} rows, "
            f"too few for one in each of {', '.join(sizes)}"
        )
    for name, size in sizes.items():
        if size < len(classes):
            raise InputError(
                f"the {name} split would have {max(size, 0)} of {len(target)} rows for {len(classes)} classes"
            )
    splits = {"test": rows[:0]}
    rest = rows
    for name in ("test", "held_out"):
        if name in sizes:
            rest, splits[name] = train_test_split(rest, test_size=sizes[name], stratify=target[rest], random_state=seed)
    splits["train"] = rest
    for name in sizes:
        absent = classes[np.bincount(target[splits[name]], minlength=int(classes[-1]) + 1)[classes] == 0]
        if len(absent):
            count = counts[classes == absent[0]][0]
            raise InputError(
                f"the {name} split of {sizes[name]} rows got none of the {count} rows of class "
                f"{_name(absent[0], class_names)}; make the split larger"
            )
    return np.sort(splits["train"]), np.sort(splits["held_out"]), np.sort(splits["test"])


def subset(target: NDArray[np.int64], size: int, *, seed: int, option: str = "train") -> Rows:
    """Increasing row numbers of a stratified sample with at least one row per class.

    Args:
        target: class indices, shape (N,).
        size: number of rows.
        seed: seed of the sample.
        option: name of the size in messages.

    Raises:
        InputError: for a size above N or below the number of classes.
    """
    classes = np.unique(target)
    if not len(classes) <= size <= len(target):
        raise InputError(
            f"{option}={size} must lie in [{len(classes)}, {len(target)}]: {len(target)} rows of {len(classes)} classes"
        )
    order = np.random.default_rng(seed).permutation(len(target))
    turn = np.empty(len(target))  # the n rows of a class are spaced by 1 / n
    for c in classes:
        members = order[target[order] == c]
        turn[members] = np.arange(len(members)) / len(members)
    return np.sort(order[np.argsort(turn[order], kind="stable")[:size]])


def oversample(target: NDArray[np.int64], *, seed: int) -> Rows:
    """Row numbers with rows of the smaller classes repeated until all classes are as frequent as the largest.

    All rows occur once, in order, followed by the repeated ones. For training rows only.

    Args:
        target: class indices, shape (N,).
        seed: seed of the draws.

    Raises:
        InputError: where imbalanced-learn is not installed.
    """
    try:
        from imblearn.over_sampling import RandomOverSampler  # type: ignore[import-untyped]  # an extra of the package
    except ImportError as error:
        raise missing_package("oversample=true", error) from error
    if len(np.unique(target)) < 2:
        return np.arange(len(target), dtype=np.int64)
    sampler = RandomOverSampler(random_state=seed)
    sampler.fit_resample(np.zeros((len(target), 1)), target)
    return np.asarray(sampler.sample_indices_, dtype=np.int64)


def _size(name: str, value: int | float, total: int) -> int:
    """A size given as a number or a share, as a number of rows."""
    if isinstance(value, float):
        if not 0 < value < 1:
            raise InputError(f"{name} as a share must lie in (0, 1), not {value}")
        return round(value * total)
    if value < 1:
        raise InputError(f"{name} must be at least 1 row, not {value}")
    return value


def _name(index: int, names: Sequence[str]) -> str:
    return repr(names[index]) if names else str(index)
