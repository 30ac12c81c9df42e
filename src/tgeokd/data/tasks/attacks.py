"""What the attack detection tasks share: rows with labels from files, and the way from rows to a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import oversample as oversampled
from tgeokd.data.tables.encoder import FeatureEncoder, as_numbers, place
from tgeokd.data.tables.reader import Table
from tgeokd.utils.errors import InputError

__all__ = ["NAMES", "attack_task", "found", "labelled"]

Rows = NDArray[np.int64]

NAMES = ("accuracy", "nll", "macro_f1", "macro_auc", "recall", "detection_rate")
"""The metrics of attack detection."""
_SHOWN = 5  # columns listed in the notes, labels listed in messages


def found(data_dir: Path, folders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first of some files or folders that is in one of some folders of ``data_dir``, or directly in it."""
    names = list(names)
    places = [data_dir / folder / name for folder in (*folders, "") for name in names]
    return next((path for path in places if path.exists()), None)


def labelled(
    table: Table,
    *,
    numeric: Sequence[str],
    label: str,
    classes: Mapping[str, int],
    bad_rows: Literal["error", "skip"] = "error",
) -> tuple[Table, Rows]:
    """The rows with numbers where numbers belong and a known label.

    Args:
        table: rows of a file.
        numeric: columns of numbers.
        label: the column of the labels.
        classes: the class of each label, as text; of labels stored as numbers too.
        bad_rows: what to do with other rows: ``error``, or leave them out.

    Returns:
        The table with the numeric columns as floats, and the classes of its rows, shape (N,).

    Raises:
        InputError: for the first faulty row with ``bad_rows="error"``, naming file, row and column.
    """
    good = np.ones(len(table.frame), dtype=bool)
    columns = []
    for name in numeric:
        column = table.frame[name]
        if bad_rows == "skip" and column.dtype == pl.String:
            text = column.str.strip_chars()
            column = text.cast(pl.Float64, strict=False)
            good &= (column.is_not_null() | text.is_null() | (text == "")).fill_null(True).to_numpy()
        else:
            column = as_numbers(table.frame, name, source=table.source, rows=table.rows)
        columns.append(column.alias(name))
    text = table.frame[label].cast(pl.String).str.strip_chars(" \t'\"").str.replace(r"^(\d+)\.0$", "$1")
    names, indices = pl.Series(list(classes), dtype=pl.String), pl.Series(list(classes.values()), dtype=pl.Int64)
    target = np.array(text.replace_strict(names, indices, default=-1, return_dtype=pl.Int64), dtype=np.int64)
    good &= target >= 0
    if bad_rows == "error" and not good.all():
        row = int((~good).argmax())
        known = ", ".join(list(classes)[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        given = repr(text[row]) if text[row] else "no label"
        raise InputError(f"{place(int(table.rows[row]), table.source, label)}: {given}, expected one of {known}")
    return dataclasses.replace(table, frame=table.frame.with_columns(columns)).filter(good), target[good]


def attack_task(
    frame: pl.DataFrame,
    target: Rows,
    ids: Rows,
    parts: tuple[Rows, Rows, Rows],
    *,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    class_names: Sequence[str],
    attack_classes: Sequence[int],
    noise: float,
    oversample: bool,
    seed: int,
    tables: Iterable[Table],
    notes: Mapping[str, Any],
    test_groups: Mapping[str, NDArray[np.bool_]] | None = None,
    choose_by: str = "macro_f1",
) -> TaskData:
    """A task from a table whose rows are split already.

    The encoder is fitted on the training rows, before any is repeated. Labels are made noisy first and classes balanced by the
    noisy labels, as one would who has only those; held-out and test rows are neither.

    Args:
        frame: all rows.
        target: their classes, shape (N,).
        ids: their names, shape (N,).
        parts: row numbers of the training, the held-out and the test part.
        numeric: columns to standardise.
        categorical: columns to code.
        class_names: of the C classes.
        attack_classes: class indices that are attacks.
        noise: share of the training labels replaced by a random class.
        oversample: repeat training rows of the smaller classes until all are as frequent.
        seed: of the noise and the repetition.
        tables: what was read, for names and checksums.
        notes: what else is to be noted.
        test_groups: masks over the rows of the test part.
        choose_by: see :class:`~tgeokd.core.metrics.Metrics`.
    """
    metrics = Metrics(NAMES, "macro_f1", tuple(attack_classes), tuple(class_names), choose_by)
    train, held_out, test = parts
    y = torch.from_numpy(target)
    metrics.check(y[test], len(class_names))
    encoder = FeatureEncoder.fit(frame[train], numeric=numeric, categorical=categorical)
    labels, corrupted = symmetric_noise(y[train], noise, len(class_names), seed)
    kept = oversampled(labels.numpy(), seed=seed) if oversample else np.arange(len(train))
    numbers, codes = encoder.transform(frame)
    y_of = {"train": y[train], "held_out": y[held_out], "test": y[test]}
    found_and_done = {
        "files": {Path(table.source).name: table.sha256 for table in tables},
        **notes,
        "rows": {"train": len(train), "oversampled": len(kept) - len(train)}
        | {"held_out": len(held_out), "test": len(test)},
        "class_counts": {
            part: {name: int((values == c).sum()) for c, name in enumerate(class_names)}
            for part, values in y_of.items()
        },
        "wrong_training_labels": int(corrupted.sum()),
        "missing": _most(encoder.missing(frame)),
        "infinite": _most(encoder.infinite(frame)),
        "unseen_in_test": encoder.unseen(frame[test]),
    }

    def dataset(rows: Rows, labels: torch.Tensor) -> ArrayDataset:
        return ArrayDataset((numbers[rows], codes[rows]), labels, torch.from_numpy(ids[rows]))

    return TaskData(
        dataset(train[kept], labels[kept]),
        dataset(held_out, y[held_out]),
        dataset(test, y[test]),
        len(class_names),
        encoder.inputs,
        corrupted[kept],
        tuple(class_names),
        metrics,
        {key: value for key, value in found_and_done.items() if value != {}},
        {name: torch.from_numpy(mask) for name, mask in (test_groups or {}).items()},
        encoder,
    )


def _most(counts: dict[str, int]) -> dict[str, Any]:
    """A count by column, shortened to the columns with most; nothing of nothing."""
    if not counts:
        return {}
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return {"values": sum(counts.values()), "columns": len(counts), "most": dict(largest)}
