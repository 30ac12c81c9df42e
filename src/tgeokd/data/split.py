"""Seeded stratified splits of row numbers, and oversampling of the rarer classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from tgeokd.utils.errors import InputError, missing_package

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
        Row numbers in increasing order; the last array is empty with ``test=None``. Every split has every class.
    """
    sizes = {"held_out": _size("held_out", held_out, len(target))}
    if test is not None:
        sizes["test"] = _size("test", test, len(target))
    sizes = {"train": len(target) - sum(sizes.values())} | sizes
    classes, counts = np.unique(target, return_counts=True)
    names = [repr(class_names[c]) if class_names else str(c) for c in classes]
    if counts.min(initial=len(sizes)) < len(sizes):
        rare = int(counts.argmin())
        each = ", ".join(sizes)
        raise InputError(f"class {names[rare]} has {counts[rare]} rows, too few for one in each of {each}")
    for name, size in sizes.items():
        if size < len(classes):
            found = f"{max(size, 0)} of {len(target)} rows for {len(classes)} classes"
            raise InputError(f"the {name} split would have {found}")
    rest = np.arange(len(target), dtype=np.int64)
    splits = {"test": rest[:0]}
    for name in ("test", "held_out"):
        if name in sizes:
            rest, splits[name] = train_test_split(rest, test_size=sizes[name], stratify=target[rest], random_state=seed)
    splits["train"] = rest
    for name, size in sizes.items():
        absent = np.flatnonzero(~np.isin(classes, target[splits[name]]))
        if len(absent):
            lost = f"none of the {counts[absent[0]]} rows of class {names[absent[0]]}"
            raise InputError(f"the {name} split of {size} rows got {lost}; make the split larger")
    return np.sort(splits["train"]), np.sort(splits["held_out"]), np.sort(splits["test"])


def subset(target: NDArray[np.int64], size: int, *, seed: int, option: str = "train") -> Rows:
    """Increasing row numbers of a stratified sample of class indices (N,) with at least one row per class.

    ``option`` is the name of the size in messages.
    """
    classes, n = np.unique(target), len(target)
    if not len(classes) <= size <= n:
        raise InputError(f"{option}={size} must lie in [{len(classes)}, {n}]: {n} rows of {len(classes)} classes")
    order = np.random.default_rng(seed).permutation(len(target))
    turn = np.empty(len(target))  # the n rows of a class are spaced by 1 / n
    for c in classes:
        members = order[target[order] == c]
        turn[members] = np.arange(len(members)) / len(members)
    return np.sort(order[np.argsort(turn[order], kind="stable")[:size]])


def oversample(target: NDArray[np.int64], *, seed: int) -> Rows:
    """Row numbers with rows of the smaller classes repeated until all classes are as frequent as the largest.

    ``target`` has class indices, shape (N,). All rows occur once, in order, followed by the repeated ones. For training rows
    only.
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
