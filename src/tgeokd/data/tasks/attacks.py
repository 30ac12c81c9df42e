"""Shared by the attack detection tasks: rows with labels from files, and a task from rows."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.split import Rows
from tgeokd.data.tables.encoder import FeatureEncoder, as_numbers, as_text, place
from tgeokd.data.tables.labels import Draws, table_splits
from tgeokd.data.tables.reader import BadRows, Table
from tgeokd.utils.errors import InputError

NAMES = ("accuracy", "nll", "macro_f1", "macro_auc", "recall", "detection_rate")
"""The metrics of attack detection."""
_SHOWN = 5  # columns listed in the notes, labels listed in messages


def refuse_lacking(table: Table, expected: Sequence[str]) -> None:
    """Raise an error where a table lacks some columns, with their number and the first."""
    if lacking := [name for name in expected if name not in table.frame.columns]:
        found = f"{len(lacking)} of {len(expected)} columns are missing, first {lacking[0]!r}"
        raise InputError(f"{table.source}: {found}")


def labelled(
    table: Table, *, numeric: Sequence[str], label: str, classes: Mapping[str, int], bad_rows: BadRows = "error"
) -> tuple[Table, Rows]:
    """The rows with numbers in the columns ``numeric`` (as floats) and a known label, and their class indices, shape (N,).

    ``classes`` has the class index of each label as text; labels may be stored as numbers. The first other row is an error
    with file, row and column; with ``bad_rows="skip"`` such rows are left out instead.
    """
    good = np.ones(len(table.frame), dtype=bool)
    columns = []
    for name in numeric:
        column = table.frame[name]
        if bad_rows == "skip" and column.dtype == pl.String:
            text = as_text(table.frame, name)
            column = text.cast(pl.Float64, strict=False)
            good &= (column.is_not_null() | text.is_null()).to_numpy()
        else:
            column = as_numbers(table.frame, name, source=table.source, rows=table.rows)
        columns.append(column.alias(name))
    text = table.frame[label].cast(pl.String).str.strip_chars(" \t'\"").str.replace(r"^(\d+)\.0$", "$1")
    found = text.replace_strict(list(classes), list(classes.values()), default=-1, return_dtype=pl.Int64)
    target = np.array(found, dtype=np.int64)
    good &= target >= 0
    if bad_rows == "error" and not good.all():
        row = int((~good).argmax())
        known = ", ".join(list(classes)[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        given = repr(text[row]) if text[row] else "label missing"
        raise InputError(f"{place(int(table.rows[row]), table.source, label)}: {given}, expected one of {known}")
    return dataclasses.replace(table, frame=table.frame.with_columns(columns)).filter(good), target[good]


def attack_task(
    frame: pl.DataFrame,
    target: Rows,
    ids: Rows,
    splits: tuple[Rows, Rows, Rows],
    *,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    class_names: Sequence[str],
    attack_classes: Sequence[int],
    draws: Draws,
    tables: Iterable[Table],
    notes: Mapping[str, Any],
    test_groups: Mapping[str, NDArray[np.bool_]] | None = None,
    choose_by: str = "macro_f1",
) -> TaskData:
    """A task from class indices (N,), sample ids (N,) and row numbers of the training, validation and test set.

    The encoder is fitted on the training rows before oversampling. For ``attack_classes`` and ``choose_by`` see
    :class:`~tgeokd.core.metrics.Metrics`. ``test_groups`` are masks over the rows of the test set.
    """
    metrics = Metrics(NAMES, "macro_f1", tuple(attack_classes), tuple(class_names), choose_by)
    train, held_out, test = splits
    metrics.check(torch.from_numpy(target[test]), len(class_names))
    encoder = FeatureEncoder.fit(frame[train], numeric=numeric, categorical=categorical)
    data = table_splits(encoder, encoder.transform(frame), target, ids, splits, class_names, draws)

    def by_class(rows: Rows) -> dict[str, int]:
        return dict(zip(class_names, np.bincount(target[rows], minlength=len(class_names)).tolist(), strict=True))

    counts = {"held_out": len(held_out), "test": len(test)}
    everything = {
        "files": {Path(table.source).name: table.sha256 for table in tables},
        **notes,
        "rows": {"train": len(train), "oversampled": len(data["train"]) - len(train)} | counts,
        "class_counts": {"train": by_class(train), "held_out": by_class(held_out), "test": by_class(test)},
        "wrong_training_labels": int(data["corrupted"][: len(train)].sum()),
        "missing": _most(encoder.missing(frame)),
        "infinite": _most(encoder.infinite(frame)),
        "unseen_in_test": encoder.unseen(frame[test]),
    }
    return TaskData(
        **data,
        metrics=metrics,
        notes={key: value for key, value in everything.items() if value != {}},
        test_groups={name: torch.from_numpy(mask) for name, mask in (test_groups or {}).items()},
    )


def _most(counts: dict[str, int]) -> dict[str, Any]:
    """Counts by column, shortened to the largest ones; empty for no counts."""
    if not counts:
        return {}
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return {"values": sum(counts.values()), "columns": len(counts), "most": dict(largest)}
