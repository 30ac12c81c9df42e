"""The label column of a table: rows without one, the classes and their indices; the splits of an encoded table."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

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

Rare = Literal["error", "drop", "merge"]
MERGED = "(rare)"
NUMBERS, QUANTITIES, ROWS_PER_CLASS = (
    200,
    30,
    20,
)  # whole numbers, numbers with decimals, rows that a class has at least


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


def refuse_numbers(table: Table, label: str) -> None:
    """Raise an error for a label that is a quantity: hundreds of different numbers, or dozens with decimals."""
    column = table.frame[label]
    if not column.dtype.is_numeric():
        return
    known = column.drop_nulls().unique()
    decimals = column.dtype.is_float() and bool((known != known.floor()).any())
    few = len(column) < ROWS_PER_CLASS * len(known)
    if len(known) >= (QUANTITIES if decimals else NUMBERS) and few:
        raise InputError(
            f"column {label!r} of {table.source} has {len(known)} different numbers on {len(column)} rows: a regression "
            "target, and this package classifies. Put it into ranges first, or name another label"
        )


def without_rare(
    tables: Sequence[Table | None], label: str, rare: Rare, rows: int
) -> tuple[list[Table | None], dict[str, int]]:
    """Tables without the rows of rare classes, or with these in one class :data:`MERGED`.

    Args:
        tables: the training table and a test table or None.
        label: the label column.
        rare: what to do with them.
        rows: a class with fewer rows in the training table is rare.

    Returns:
        The tables, and the rows of each rare class.

    Raises:
        InputError: with ``rare="error"``, naming the rare classes.
    """
    first = tables[0]
    assert first is not None
    counts = as_text(first.frame, label).value_counts(name="rows").filter(pl.col("rows") < rows).sort("rows", label)
    found = dict(zip(counts[label].to_list(), counts["rows"].to_list(), strict=True))
    if not found:
        return list(tables), {}
    if rare == "error":
        named = ", ".join(f"{name!r} ({count})" for name, count in list(found.items())[:5])
        more = ", ..." if len(found) > 5 else ""
        raise InputError(
            f"column {label!r} of {first.source} has {len(found)} classes on fewer than {rows} rows: {named}{more}. "
            f"data.rare=drop leaves them out, data.rare=merge makes one class {MERGED!r} of them; data.rare_rows is the limit"
        )
    changed: list[Table | None] = []
    for table in tables:
        if table is None:
            changed.append(None)
            continue
        names = as_text(table.frame, label)
        is_rare = names.is_in(list(found))
        if rare == "drop":
            changed.append(table.filter((~is_rare).to_numpy()))
            continue
        if MERGED in set(names.to_list()):
            raise InputError(f"column {label!r} of {table.source} has a class {MERGED!r} already: use data.rare=drop")
        merged = pl.Series(label, [MERGED if r else n for n, r in zip(names, is_rare, strict=True)])
        changed.append(dataclasses.replace(table, frame=table.frame.with_columns(merged)))
    return changed, found


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
