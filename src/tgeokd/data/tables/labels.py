"""The label column of a table: rows without one, the classes, and their indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tgeokd.data.tables.encoder import as_text, place
from tgeokd.data.tables.reader import Table
from tgeokd.utils.errors import InputError, check_names

__all__ = ["BadRows", "class_indices", "find_classes", "with_label"]

BadRows = Literal["error", "skip"]


def with_label(table: Table, label: str, bad_rows: BadRows) -> Table:
    """The rows that have a label; without ``bad_rows="skip"`` an error for the first row without one."""
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
