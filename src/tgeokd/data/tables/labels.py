"""The label column of a table: rows without one, the classes and their indices; the splits of an encoded table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import Rows, oversample
from tgeokd.data.tables.encoder import FeatureEncoder, as_text, place
from tgeokd.data.tables.reader import BadRows, Table
from tgeokd.utils.errors import InputError, check_names


def with_label(table: Table, label: str, bad_rows: BadRows) -> Table:
    """The rows that have a label; without ``bad_rows="skip"`` an error for the first row without one. A word such as NA on
    several rows may be a class, and is an error until ``missing`` says that it is none.
    """
    words = {word: rows for word, rows in table.words.get(label, {}).items() if rows > 1}
    if words and "missing" not in table.format:
        word, rows = max(words.items(), key=lambda item: item[1])
        found = f"column {label!r} of {table.source} has {word!r} on {rows} rows, a class or a missing label"
        raise InputError(f"{found}; give data.missing, the list of words that mean missing: [] or [{word}]")
    known = as_text(table.frame, label, source=table.source).is_not_null().to_numpy()
    if known.all():
        return table
    if not known.any():
        raise InputError(f"column {label!r} of {table.source} has no label on any row")
    if bad_rows == "error":
        row = int(table.rows[known.argmin()])
        raise InputError(f"{place(row, table.source, label)}: the label is missing; bad_rows=skip leaves such rows out")
    return table.filter(known)


def find_classes(table: Table, label: str, positive: str | None) -> tuple[str, ...]:
    """Names of the classes: numbers in increasing order, text in alphabetical order, ``positive`` (one of two) last."""
    values = pl.DataFrame({"value": table.frame[label], "name": as_text(table.frame, label)}).unique("name")
    order = "value" if values["value"].dtype.is_numeric() else "name"
    classes = tuple(values.sort(order)["name"])
    if len(classes) < 2:
        raise InputError(f"column {label!r} of {table.source} has only one class, {classes[0]!r}")
    if positive is None:
        return classes
    if len(classes) > 2:
        raise InputError(f"positive={positive!r} needs two classes, and {table.source} has {len(classes)}")
    check_names("class", [positive], classes)
    return (*(name for name in classes if name != positive), positive)


def class_indices(table: Table, label: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """The labels as class indices, shape (N,)."""
    names = as_text(table.frame, label, source=table.source)
    indices = names.replace_strict(list(classes), range(len(classes)), default=-1, return_dtype=pl.Int64).to_numpy()
    if (indices < 0).any():
        row = int((indices < 0).argmax())
        where = place(int(table.rows[row]), table.source, label)
        raise InputError(f"{where}: {names[row]!r} is not a class of the training file, which has {', '.join(classes)}")
    return np.array(indices, dtype=np.int64)


class Draws(NamedTuple):
    """How the training labels and rows are drawn.

    Label noise comes before oversampling, which balances the noisy labels, as for a user who has only those. Validation and
    test rows are neither noisy nor repeated.
    """

    noise: float  # share of the training labels replaced by a random class
    oversample: bool  # repeat training rows of the rarer classes until all classes are equally frequent
    seed: int


def table_splits(
    encoder: FeatureEncoder,
    inputs: tuple[Tensor, Tensor],
    target: NDArray[np.int64],
    ids: NDArray[np.int64],
    splits: Sequence[Rows],
    class_names: Sequence[str],
    draws: Draws,
) -> dict[str, Any]:
    """Training, validation and test set of an encoded table, as arguments of :class:`~tgeokd.data.base.TaskData`.

    Args:
        encoder: encoder of the table.
        inputs: numbers (N, M) and codes (N, K) of all rows.
        target: class indices, shape (N,).
        ids: sample ids, shape (N,).
        splits: row numbers of the three sets.
        class_names: names of the C classes.
        draws: label noise and oversampling.
    """
    train, held_out, test = splits
    labels, names = torch.from_numpy(target), torch.from_numpy(ids)
    noisy, corrupted = symmetric_noise(labels[train], draws.noise, len(class_names), draws.seed)
    kept = oversample(noisy.numpy(), seed=draws.seed) if draws.oversample else np.arange(len(train))

    def dataset(rows: Rows, target: Tensor) -> ArrayDataset:
        return ArrayDataset((inputs[0][rows], inputs[1][rows]), target, names[rows])

    return {
        "train": dataset(train[kept], noisy[kept]),
        "held_out": dataset(held_out, labels[held_out]),
        "test": dataset(test, labels[test]),
        "corrupted": corrupted[kept],
        "num_classes": len(class_names),
        "class_names": tuple(class_names),
        "inputs": encoder.inputs,
        "encoder": encoder,
    }
