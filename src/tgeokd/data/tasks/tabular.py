"""`tabular`: any table with a label column. `adult`: one that is always the same, the census income data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import Rows, stratified_split, subset
from tgeokd.data.split import oversample as oversampled
from tgeokd.data.tables.encoder import FeatureEncoder, as_numbers
from tgeokd.data.tables.labels import BadRows, class_indices, find_classes, with_label
from tgeokd.data.tables.reader import Table, read_table
from tgeokd.utils.errors import InputError, check_names

__all__ = ["adult", "tabular"]

BINARY = ("accuracy", "nll", "auc", "calibration")
MULTICLASS = ("accuracy", "nll", "macro_f1", "macro_auc")
MOSTLY = 0.9  # share of a column's values from which on the others look like mistakes

ADULT_LABEL = "income-per-year"
ADULT_HEADER = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", ADULT_LABEL),
)


def tabular(
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    file: str | None = None,
    label: str | None = None,
    test_file: str | None = None,
    numeric: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    id_column: str | None = None,
    positive: str | None = None,
    held_out: float = 0.15,
    test: float = 0.2,
    min_count: int = 5,
    noise: float = 0.0,
    oversample: bool = False,
    bad_rows: BadRows = "error",
) -> TaskData:
    """A csv or parquet file with a row a sample and a column for the label.

    A column that is not named in ``numeric``, ``categorical`` or ``drop`` is numeric where the file holds numbers, categorical
    where it holds text or booleans. Left out, with a note: dates and lists, and text of which no value is on ``min_count``
    training rows, so that a code says nothing. A column of text that is numbers on 90 % of its rows or more is refused: the
    others look like mistakes.

    Args:
        data_dir: folder that relative paths start from; the working directory by default.
        seed: of the split, the noise and the over-sampling.
        file: the table.
        label: its label column; the classes are its values, numbers in their order, text by name.
        test_file: table with the test rows; by default they are a share of ``file``.
        numeric: columns to standardise, whatever the file holds.
        categorical: columns to code, whatever the file holds.
        drop: columns to leave out.
        id_column: column of unique integers by which samples are known; their row numbers by default.
        positive: with two classes, the one that is class 1; the last by default.
        held_out: share of the rows of ``file`` held out.
        test: share of the rows of ``file`` to test on; ignored with a ``test_file``.
        min_count: training rows a categorical value needs for a code of its own.
        noise: share of the training labels replaced by a random class; held-out and test labels stay clean.
        oversample: repeat training rows of the rarer classes until all classes are as frequent.
        bad_rows: what to do with csv rows that have too few or too many values, and with rows without a label: ``error``, or
            leave them out and note how many.

    Raises:
        InputError: for files, columns, values or sizes that do not fit, with the file, row and column.
    """
    if file is None or label is None:
        raise InputError(
            "task 'tabular' needs the table and its label column: --set data.file=FILE --set data.label=COLUMN"
        )
    folder = data_dir or Path()
    table = read_table(folder / file, source=file, bad_rows=bad_rows)
    other = None if test_file is None else read_table(folder / test_file, source=test_file, bad_rows=bad_rows)
    return _task(
        table,
        other,
        label=label,
        numeric=numeric,
        categorical=categorical,
        drop=drop,
        id_column=id_column,
        positive=positive,
        held_out=held_out,
        test=test,
        min_count=min_count,
        noise=noise,
        oversample=oversample,
        bad_rows=bad_rows,
        seed=seed,
    )


def adult(
    *,
    data_dir: Path,
    seed: int = 0,
    train: int | None = None,
    held_out: float = 0.15,
    test: float = 0.2,
    min_count: int = 5,
    noise: float = 0.0,
    oversample: bool = False,
) -> TaskData:
    """Adult / Census Income (Becker and Kohavi, UCI Machine Learning Repository, 1996): who earns more than $50,000 a year.

    Read from ``adult.parquet`` or UCI's ``adult.data``, in ``data_dir`` or its folder ``adult``. Beside ``adult.data``,
    ``adult.test`` is the test set where it is there. ``fnlwgt`` is left out: it says how many people of the census a row
    stands for, which is about the survey, not about the person.

    Args:
        data_dir: the data folder.
        seed: of the split, the noise and the over-sampling.
        train: training rows, drawn by class from the training part; all by default.
        held_out: share of the rows held out.
        test: share of the rows to test on, where ``adult.test`` is not there.
        min_count: as for :func:`tabular`.
        noise: as for :func:`tabular`.
        oversample: as for :func:`tabular`.

    Raises:
        InputError: where the file is not there or holds something else.
    """
    table, other = _read_adult(data_dir)
    return _task(
        table,
        other,
        label=ADULT_LABEL,
        drop=("fnlwgt",),
        positive=">50K",
        train=train,
        held_out=held_out,
        test=test,
        min_count=min_count,
        noise=noise,
        oversample=oversample,
        seed=seed,
    )


def _read_adult(data_dir: Path) -> tuple[Table, Table | None]:
    for path in (data_dir / "adult" / "adult.parquet", data_dir / "adult.parquet"):
        if path.is_file():
            return read_table(path, source=path.name), None
    for folder in (data_dir / "adult", data_dir):
        if (folder / "adult.data").is_file():
            table = read_table(folder / "adult.data", source="adult.data", header=ADULT_HEADER)
            if not (folder / "adult.test").is_file():
                return table, None
            other = read_table(folder / "adult.test", source="adult.test", header=ADULT_HEADER, skip_lines=1)
            # there, and only there, a full stop follows the label
            frame = other.frame.with_columns(pl.col(ADULT_LABEL).str.strip_suffix("."))
            return table, Table(frame, other.rows, other.source, other.total, other.sha256)
    raise InputError(f"neither adult.parquet nor adult.data is in {data_dir} or {data_dir / 'adult'}")


def _task(
    table: Table,
    other: Table | None,
    *,
    label: str,
    seed: int,
    held_out: float,
    test: float,
    min_count: int,
    noise: float,
    oversample: bool,
    positive: str | None,
    drop: Sequence[str],
    train: int | None = None,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    id_column: str | None = None,
    bad_rows: BadRows = "error",
) -> TaskData:
    """The splits of one table, or of one for training and another for the test."""
    named = (label, *numeric, *categorical, *drop, *([] if id_column is None else [id_column]))
    check_names(f"column of {table.source}", named, table.frame.columns)
    if twice := {name for name in named if named.count(name) > 1}:
        raise InputError(f"column {min(twice)!r} has two roles among label, numeric, categorical, drop and id_column")
    table = with_label(table, label, bad_rows)
    classes = find_classes(table, label, positive)
    target = class_indices(table, label, classes)
    share = test if other is None else None
    fit, held, rest = stratified_split(target, held_out=held_out, test=share, seed=seed, class_names=classes)
    if train is not None:
        fit = fit[subset(target[fit], train, seed=seed)]

    kinds, left_out = _kinds(table, fit, {label, *drop, id_column}, numeric, categorical, min_count)
    table = _with_numbers(table, kinds)
    fitted = table.frame[fit]
    encoder = FeatureEncoder.fit(
        fitted,
        numeric=[name for name, kind in kinds.items() if kind == "numeric"],
        categorical=[name for name, kind in kinds.items() if kind == "categorical"],
        min_count=min_count,
    )
    if other is not None:
        check_names(f"column of {other.source}", [label, *kinds], other.frame.columns)
        other = _with_numbers(with_label(other, label, bad_rows), kinds)
        target = np.concatenate([target, class_indices(other, label, classes)])
        rest = np.arange(len(table.rows), len(target))  # rows of the second table are counted on after the first's
    tables = [table] if other is None else [table, other]
    encoded = [encoder.transform(one.frame, source=one.source) for one in tables]
    numbers, codes = (torch.cat(both) for both in zip(*encoded, strict=True))
    labels, ids = torch.from_numpy(target), torch.from_numpy(_ids(tables, id_column))

    noisy, corrupted = symmetric_noise(labels[fit], noise, len(classes), seed)
    drawn = oversampled(noisy.numpy(), seed=seed) if oversample else np.arange(len(fit))
    again = fit[drawn]

    def part(rows: Rows) -> ArrayDataset:
        return ArrayDataset((numbers[rows], codes[rows]), labels[rows], ids[rows])

    return TaskData(
        ArrayDataset((numbers[again], codes[again]), noisy[drawn], ids[again]),
        part(held),
        part(rest),
        len(classes),
        encoder.inputs,
        corrupted[drawn],
        classes,
        Metrics(BINARY if len(classes) == 2 else MULTICLASS, class_names=classes),
        {
            "files": {one.source: {"sha256": one.sha256, "rows": one.total} for one in tables},
            "rows": {"train": len(fit), "held_out": len(held), "test": len(rest)}
            | {"left out": sum(one.total - len(one.rows) for one in tables), "drawn again": len(drawn) - len(fit)},
            "training labels": dict(zip(classes, labels[fit].bincount(minlength=len(classes)).tolist(), strict=True)),
            "numeric": [column.name for column in encoder.numeric],
            "categorical": {column.name: len(column.values) for column in encoder.categorical},
            "columns left out": left_out | dict.fromkeys(drop, "asked for"),
            "look like ids": _like_ids(table.frame, encoder),
            "missing": encoder.missing(fitted),
            "infinite": encoder.infinite(fitted),
            "test values without a code": encoder.unseen(table.frame[rest] if other is None else other.frame),
        },
        encoder=encoder,
    )


def _kinds(
    table: Table,
    fit: NDArray[np.int64],
    others: set[str | None],
    numeric: Sequence[str],
    categorical: Sequence[str],
    min_count: int,
) -> tuple[dict[str, str], dict[str, str]]:
    """Numeric or categorical for each feature, in the order of the file, and why the other columns are left out."""
    kinds: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name in table.frame.columns:
        column = table.frame[name]
        if name in others:
            continue
        if name in numeric or name in categorical:
            kinds[name] = "numeric" if name in numeric else "categorical"
        elif column.dtype.is_numeric():
            kinds[name] = "numeric"
        elif column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
            _refuse_mistakes(table, name)
            most = column[fit].drop_nulls().alias("value").value_counts(name="rows")["rows"].max()
            if not isinstance(most, int) or most < max(min_count, 2):
                dropped[name] = f"text, no value on {max(min_count, 2)} training rows"
            else:
                kinds[name] = "categorical"
        else:
            dropped[name] = f"of type {column.dtype}"
    return kinds, dropped


def _refuse_mistakes(table: Table, name: str) -> None:
    """Raise the error of the first value that is not a number where nearly all are."""
    text = table.frame[name].cast(pl.String)
    numbers = len(text) - text.cast(pl.Float64, strict=False).null_count()
    if MOSTLY <= numbers / max(len(text) - text.null_count(), 1) < 1:
        try:
            as_numbers(table.frame, name, source=table.source, rows=table.rows)
        except InputError as error:
            raise InputError(f"{error}, as most of the column is; text on purpose goes into categorical") from error


def _with_numbers(table: Table, kinds: dict[str, str]) -> Table:
    """The numeric columns as numbers, so that a value that is none is found with its row in the file."""
    numbers = [
        as_numbers(table.frame, name, source=table.source, rows=table.rows)
        for name, kind in kinds.items()
        if kind == "numeric"
    ]
    return Table(table.frame.with_columns(numbers), table.rows, table.source, table.total, table.sha256)


def _ids(tables: Sequence[Table], id_column: str | None) -> NDArray[np.int64]:
    """What each row of the tables, one after the other, is known by."""
    if id_column is None:
        starts = np.cumsum([0, *(table.total for table in tables)])
        return np.concatenate([table.rows + start for table, start in zip(tables, starts[:-1], strict=True)])
    for table in tables:
        check_names(f"column of {table.source}", [id_column], table.frame.columns)
        column = table.frame[id_column]
        if not column.dtype.is_integer() or column.null_count():
            raise InputError(f"id_column {id_column!r} of {table.source} must hold an integer on every row")
    ids = np.concatenate([table.frame[id_column].cast(pl.Int64).to_numpy() for table in tables])
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"id_column {id_column!r} must hold unique integers; {values[counts > 1][0]} is there more than once"
        )
    return ids


def _like_ids(frame: pl.DataFrame, encoder: FeatureEncoder) -> list[str]:
    """Features with another whole number on every row, which more likely name rows than describe them."""
    columns = (frame[column.name] for column in encoder.numeric)
    return [c.name for c in columns if bool((c == c.floor()).fill_null(False).all()) and c.n_unique() == len(c)]
