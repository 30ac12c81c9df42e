"""`tabular`: any table with a label column. `adult`: the census income data set."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.split import stratified_split, subset
from tgeokd.data.tables.dialect import TextFormat
from tgeokd.data.tables.encoder import FeatureEncoder, as_numbers
from tgeokd.data.tables.labels import (
    Draws,
    Rare,
    class_indices,
    find_classes,
    refuse_numbers,
    table_splits,
    with_label,
    without_rare,
)
from tgeokd.data.tables.leaks import index_columns, suspected_leaks
from tgeokd.data.tables.numbers import MOSTLY
from tgeokd.data.tables.reader import BadRows, Table, read_table
from tgeokd.data.tasks.registry import TASKS, find_path, provides, row_reader, same_options
from tgeokd.utils.errors import InputError, check_names

logger = logging.getLogger(__name__)

BINARY = ("accuracy", "nll", "auc", "calibration")
MULTICLASS = ("accuracy", "nll", "macro_f1", "macro_auc")

ADULT_LABEL = "income-per-year"
ADULT_HEADER = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", ADULT_LABEL),
)


@dataclass(frozen=True)
class _Columns:
    """The roles of columns, see :func:`tabular`."""

    label: str
    numeric: Sequence[str] = ()
    categorical: Sequence[str] = ()
    drop: Sequence[str] = ()
    id_column: str | None = None
    positive: str | None = None

    def check(self, table: Table) -> None:
        ids = () if self.id_column is None else (self.id_column,)
        named = (self.label, *self.numeric, *self.categorical, *self.drop, *ids)
        check_names(f"column of {table.source}", named, table.frame.columns)
        if twice := {name for name in named if named.count(name) > 1}:
            roles = "label, numeric, categorical, drop and id_column"
            raise InputError(f"column {min(twice)!r} has two roles among {roles}")


def _task(
    table: Table,
    other: Table | None,
    columns: _Columns,
    *,
    bad_rows: BadRows,
    train: int | None,
    seed: int = 0,
    held_out: float = 0.15,
    test: float = 0.2,
    min_count: int = 5,
    noise: float = 0.0,
    oversample: bool = False,
    rare: Rare = "error",
    rare_rows: int | None = None,
) -> TaskData:
    """The splits of one table, or of ``table`` for training and ``other`` for the test."""
    columns.check(table)
    label = columns.label
    table = with_label(table, label, bad_rows)
    refuse_numbers(table, label)
    other = None if other is None else with_label(other, label, bad_rows) if label in other.frame.columns else other
    (kept, other), rare_classes = without_rare([table, other], label, rare, rare_rows or (3 if other is None else 2))
    assert kept is not None
    table = kept
    classes = find_classes(table, label, columns.positive)
    target = class_indices(table, label, classes)
    share = test if other is None else None
    fit, held, rest = stratified_split(target, held_out=held_out, test=share, seed=seed, class_names=classes)
    if train is not None:
        fit = fit[subset(target[fit], train, seed=seed)]

    numeric, categorical, left_out = _kinds(table, fit, columns, min_count)
    table = _with_numbers(table, numeric)
    fitted = table.frame[fit]
    encoder = FeatureEncoder.fit(fitted, numeric=numeric, categorical=categorical, min_count=min_count)
    if other is not None:
        features = [name for name in table.frame.columns if name in (*numeric, *categorical)]
        check_names(f"column of {other.source}", [label, *features], other.frame.columns)
        other = _with_numbers(other, numeric)
        target = np.concatenate([target, class_indices(other, label, classes)])
        rest = np.arange(len(table.rows), len(target))  # the rows of the second table follow those of the first
    tables = [table] if other is None else [table, other]
    encoded = [encoder.transform(one.frame, source=one.source) for one in tables]
    numbers, codes = (torch.cat(both) for both in zip(*encoded, strict=True))
    leaks = suspected_leaks(fitted, encoder, target[fit])
    for name, told in leaks.items():
        logger.warning(
            "column %r alone tells %.1f %% of the training labels: it may hold the label, or something that is known only "
            "after it. data.drop leaves it out",
            *(name, 100 * told),
        )
    ids, draws = _ids(tables, columns.id_column), Draws(noise, oversample, seed)
    splits = table_splits(encoder, (numbers, codes), target, ids, (fit, held, rest), classes, draws)
    counts = np.bincount(target[fit], minlength=len(classes)).tolist()
    return TaskData(
        **splits,
        metrics=Metrics(BINARY if len(classes) == 2 else MULTICLASS, class_names=classes),
        notes={
            "files": {one.source: {"sha256": one.sha256, "rows": one.total} for one in tables},
            "read as": {one.source: one.format for one in tables if one.format},
            "missing words": {one.source: one.words for one in tables if one.words},
            "rows": {"train": len(fit), "held_out": len(held), "test": len(rest)}
            | {"left out": sum(one.total - len(one.rows) for one in tables)}
            | {"drawn again": len(splits["train"]) - len(fit)},
            "training labels": dict(zip(classes, counts, strict=True)),
            "numeric": [column.name for column in encoder.numeric],
            "categorical": {column.name: len(column.values) for column in encoder.categorical},
            "columns left out": left_out | dict.fromkeys(columns.drop, "excluded"),
            "suspected leaks": leaks,
            "rare classes": rare_classes,
            "look like ids": _like_ids(table.frame, encoder),
            "missing": encoder.missing(fitted),
            "infinite": encoder.infinite(fitted),
            "test values without a code": encoder.unseen(table.frame[rest] if other is None else other.frame),
        },
    )


def _read_rows(
    path: Path, *, options: Mapping[str, Any] | None = None
) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
    """The rows of a file to predict, read as the options of a run and what was found in its table say."""
    options = options or {}
    known = {name: options.get(name) for name in ("separator", "decimal", "encoding", "missing")}
    likely = next((how["decimal"] for how in options.get("notes", {}).get("read as", {}).values()), None)
    verbatim = [*options.get("categorical", ()), *options.get("drop", ()), options.get("label", "")]
    table = read_table(path, text=TextFormat(**known, likely=likely, verbatim=verbatim))
    yield table.rows, table.frame


@TASKS.register("tabular")
@provides(read_rows=_read_rows)
@same_options(_task)
def tabular(
    *,
    data_dir: Path | None = None,
    file: str | None = None,
    label: str | None = None,
    test_file: str | None = None,
    numeric: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    id_column: str | None = None,
    positive: str | None = None,
    bad_rows: BadRows = "error",
    separator: str | None = None,
    decimal: Literal[".", ","] | None = None,
    encoding: str | None = None,
    missing: tuple[str, ...] | None = None,
    **options: Any,
) -> TaskData:
    """A CSV, TSV or Parquet file, or a folder of Parquet files, with one row per sample and a label column.

    A column that is not named in ``numeric``, ``categorical`` or ``drop`` is numeric where the file has numbers, and
    categorical where it has text or booleans. Left out, with a note: dates, lists, text without a value that occurs on
    ``min_count`` training rows, and a column without a name that numbers the rows (the index of a data frame). A text column
    of which at least 90 % of the values are numbers is refused, because the others are probably mistakes. A label that is a
    quantity is refused; a single column that tells the label (nearly) perfectly is warned about.

    Args:
        data_dir: folder of relative paths; the working directory by default.
        file: the table.
        label: its label column; the classes are its values, numbers in increasing order, text in alphabetical order.
        test_file: table with the test rows; by default they are a share of ``file``.
        numeric: columns to standardise, whatever their type.
        categorical: columns to encode as categories, whatever their type.
        drop: columns to leave out.
        id_column: column of unique integers that are the sample ids; row numbers by default.
        positive: of two classes, the one with index 1; the last by default.
        bad_rows: how to treat CSV rows with too few or too many values, and rows without a label: ``error``, or ``skip`` to
            leave them out and count them in the notes.
        separator: of a text file, one character or ``tab``; a comma, semicolon, tab or bar is found.
        decimal: the character before decimals in a text file, ``.`` or ``,``; found where the numbers tell.
        encoding: of a text file, for example ``latin-1``; UTF-8, or UTF-16 with a byte order mark, is found.
        missing: words that mean a missing value in a text file, besides nothing at all; by default
            :data:`~tgeokd.data.tables.reader.MISSING_TEXT`, which in a column of text are values where they are quoted.
        **options: the following ones.
        seed: seed of the split, the label noise and the oversampling.
        held_out: share of the rows of ``file`` in the validation set.
        test: share of the rows of ``file`` in the test set; ignored with a ``test_file``.
        min_count: training rows on which a category must occur to get a code of its own.
        noise: share of the training labels replaced by a random class; validation and test labels stay clean.
        oversample: repeat training rows of the rarer classes until all classes are equally frequent.
        rare: what to do with classes on fewer than ``rare_rows`` rows: ``error`` names them, ``drop`` leaves them out,
            ``merge`` makes one class ``(rare)`` of them.
        rare_rows: the limit; by default 3, or 2 with a ``test_file``: one row for each split.
    """
    if file is None or label is None:
        needed = "the table and its label column: --set data.file=FILE --set data.label=COLUMN"
        raise InputError(f"task 'tabular' needs {needed}")
    folder = data_dir or Path()
    verbatim = (label, *categorical, *drop)
    text = TextFormat(separator, decimal, encoding, missing, verbatim=verbatim)
    table = read_table(folder / file, source=file, bad_rows=bad_rows, text=text)
    other = None
    if test_file is not None:
        text = dataclasses.replace(text, likely=table.format.get("decimal"))
        other = read_table(folder / test_file, source=test_file, bad_rows=bad_rows, text=text)
    columns = _Columns(label, numeric, categorical, drop, id_column, positive)
    return _task(table, other, columns, bad_rows=bad_rows, train=None, **options)


@TASKS.register("adult")
@provides(read_rows=row_reader(read_table))
@same_options(_task)
def adult(*, data_dir: Path, train: int | None = None, **options: Any) -> TaskData:
    """Adult / Census Income (Becker and Kohavi, UCI Machine Learning Repository, 1996): predict incomes above $50,000 a year.

    Reads ``adult.parquet`` or UCI's ``adult.data`` from ``data_dir`` or its folder ``adult``. With ``adult.data``, the file
    ``adult.test`` is the test set if it exists. ``fnlwgt`` is left out: it is a weight of the survey, not a property of the
    person.

    Args:
        data_dir: the data folder.
        train: training rows, drawn class by class from the training set; null for all.
        **options: ``seed``, ``held_out``, ``test``, ``min_count``, ``noise`` and ``oversample`` of :func:`tabular`.
    """
    columns = _Columns(ADULT_LABEL, drop=("fnlwgt",), positive=">50K")
    return _task(*_read_adult(data_dir), columns, bad_rows="error", train=train, **options)


def _read_adult(data_dir: Path) -> tuple[Table, Table | None]:
    path = find_path(data_dir, ["adult"], ["adult.parquet"]) or find_path(data_dir, ["adult"], ["adult.data"])
    if path is None:
        raise InputError(f"neither adult.parquet nor adult.data is in {data_dir} or {data_dir / 'adult'}")
    if path.suffix == ".parquet":
        return read_table(path, source=path.name), None
    table = read_table(path, source=path.name, header=ADULT_HEADER)
    test = path.with_name("adult.test")
    if not test.is_file():
        return table, None
    other = read_table(test, source=test.name, header=ADULT_HEADER, skip_lines=1)
    # a full stop follows the labels of this file only
    frame = other.frame.with_columns(pl.col(ADULT_LABEL).str.strip_suffix("."))
    return table, dataclasses.replace(other, frame=frame)


def _kinds(
    table: Table, fit: NDArray[np.int64], columns: _Columns, min_count: int
) -> tuple[list[str], list[str], dict[str, str]]:
    """The numeric and the categorical features, in the order of the file, and why the other columns are left out."""
    numeric: list[str] = []
    categorical: list[str] = []
    dropped: dict[str, str] = {}
    indices = set(index_columns(table.frame)) - {*columns.numeric, *columns.categorical}
    for name in table.frame.columns:
        column = table.frame[name]
        if name in (columns.label, *columns.drop, columns.id_column):
            continue
        if name in indices:
            dropped[name] = "numbers the rows and has no name: the index of a data frame"
            logger.info("column %r of %s left out: it numbers the rows and has no name", name, table.source)
        elif name in columns.categorical:
            categorical.append(name)
        elif name in columns.numeric or column.dtype.is_numeric():
            numeric.append(name)
        elif column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
            _refuse_mistakes(table, name)
            most = column[fit].drop_nulls().alias("value").value_counts(name="rows")["rows"].max()
            if isinstance(most, int) and most >= max(min_count, 2):
                categorical.append(name)
            else:
                dropped[name] = f"text, no value on {max(min_count, 2)} training rows"
        else:
            dropped[name] = f"of type {column.dtype}"
    return numeric, categorical, dropped


def _refuse_mistakes(table: Table, name: str) -> None:
    """Raise an error for the first value that is not a number where nearly all are."""
    text = table.frame[name].cast(pl.String)
    numbers = len(text) - text.cast(pl.Float64, strict=False).null_count()
    if MOSTLY <= numbers / max(len(text) - text.null_count(), 1) < 1:
        try:
            as_numbers(table.frame, name, source=table.source, rows=table.rows)
        except InputError as error:
            raise InputError(f"{error}, unlike most of the column; name a column of text in categorical") from error


def _with_numbers(table: Table, numeric: Sequence[str]) -> Table:
    """The table with some columns as numbers, so that an error names the row in the file."""
    numbers = [as_numbers(table.frame, name, source=table.source, rows=table.rows) for name in numeric]
    return dataclasses.replace(table, frame=table.frame.with_columns(numbers))


def _ids(tables: Sequence[Table], id_column: str | None) -> NDArray[np.int64]:
    """The sample ids of the rows of all tables."""
    if id_column is None:
        starts = np.cumsum([0, *(table.total for table in tables)])
        return np.concatenate([table.rows + start for table, start in zip(tables, starts[:-1], strict=True)])
    for table in tables:
        check_names(f"column of {table.source}", [id_column], table.frame.columns)
        column = table.frame[id_column]
        if not column.dtype.is_integer() or column.null_count():
            raise InputError(f"id_column {id_column!r} of {table.source} must have an integer on every row")
    ids = np.concatenate([table.frame[id_column].cast(pl.Int64).to_numpy() for table in tables])
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        twice = values[counts > 1][0]
        raise InputError(f"id_column {id_column!r} must have unique integers; {twice} occurs more than once")
    return ids


def _like_ids(frame: pl.DataFrame, encoder: FeatureEncoder) -> list[str]:
    """Features with a different whole number on every row, which are more likely ids than measurements."""
    columns = (frame[column.name] for column in encoder.numeric)
    return [c.name for c in columns if bool((c == c.floor()).fill_null(False).all()) and c.n_unique() == len(c)]
