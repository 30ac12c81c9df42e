"""Columns of a table as the two tensors of a table model: standardised numbers and integer codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.base import InputSpec
from tgeokd.data.tables import ENCODERS
from tgeokd.utils.errors import InputError, unknown_name
from tgeokd.utils.validation import validate_value

MISSING, UNKNOWN, FIRST = 0, 1, 2  # codes of a categorical column; known values start at FIRST


@dataclass(frozen=True)
class NumericColumn:
    """A standardised column."""

    name: str
    mean: float  # of the values that are not missing
    sd: float  # their standard deviation (divided by N), 0 for a constant column
    indicator: bool  # whether a further feature indicates missing values


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of categories."""

    name: str
    values: tuple[str, ...]  # those with a code of their own; values[0] has code 2


@ENCODERS.register("columns")
@dataclass(frozen=True)
class FeatureEncoder:
    """Converts the columns of a table to the inputs of a model; fitted on training rows, stored with the student.

    Numeric columns are standardised by the mean and the standard deviation of the fitted rows. Missing values (null, NaN,
    infinite, or too large for float32 after standardising) become 0, the mean; a column with missing values among the fitted
    rows has one more feature, 1 where the value is missing. Constant columns become 0.

    Categorical columns become codes: 0 is missing (null, NaN or blank), 1 a value below ``min_count`` or never seen; the other
    values follow by decreasing frequency, ties by name. Values are compared as text without surrounding blanks; a whole number
    is the same value in integer and in float columns.

    Rows are counted from 0 in messages, like the ``ids`` of a task.
    """

    numeric: tuple[NumericColumn, ...]  # in the order of the features
    categorical: tuple[CategoricalColumn, ...]
    unknown: Literal["code"] = "code"  # a value without a code of its own gets code 1

    def __post_init__(self) -> None:
        names = [*(column.name for column in self.numeric), *(column.name for column in self.categorical)]
        if not names:
            raise InputError("there is no column to encode")
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"column {min(twice)!r} is listed twice among the features")

    @classmethod
    def fit(
        cls, frame: pl.DataFrame, *, numeric: Sequence[str], categorical: Sequence[str], min_count: int = 1
    ) -> FeatureEncoder:
        """Fit means, standard deviations and codes to the columns ``numeric`` and ``categorical`` of training rows.

        A categorical value must occur on ``min_count`` rows to get a code of its own. Text in a numeric column is parsed.
        """
        if min_count < 1:
            raise InputError(f"min_count must be >= 1, not {min_count}")
        if not len(frame):
            raise InputError("there is no row to fit the encoder on")
        values = _numbers(frame, numeric, "")
        return cls(
            tuple(_standard(name, values[:, i]) for i, name in enumerate(numeric)),
            tuple(CategoricalColumn(name, _frequent(as_text(frame, name), min_count)) for name in categorical),
        )

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """The model's inputs; other columns of the frame are ignored. ``source`` is the name of the file in messages.

        Returns:
            Numbers, shape (N, M), float32, the indicators of missing values last; codes, shape (N, K), int64.
        """
        numbers = _numbers(frame, [column.name for column in self.numeric], source)
        mean = np.array([column.mean for column in self.numeric])
        sd = np.array([column.sd or np.inf for column in self.numeric])  # a constant column becomes 0
        with np.errstate(over="ignore", invalid="ignore"):
            standard = ((numbers - mean) / sd).astype(np.float32)
        missing = ~np.isfinite(standard)
        standard[missing] = 0
        flagged = np.array([column.indicator for column in self.numeric], dtype=bool)
        features = np.concatenate([standard, missing[:, flagged].astype(np.float32)], axis=1)

        codes = [_codes(as_text(frame, c.name, source=source), c.values) for c in self.categorical]
        table = np.stack(codes, axis=1) if codes else np.empty((len(frame), 0), dtype=np.int64)
        return torch.from_numpy(features), torch.from_numpy(table)

    @property
    def inputs(self) -> InputSpec:
        """The number of numeric features, and the number of codes of each categorical column."""
        width = len(self.numeric) + sum(column.indicator for column in self.numeric)
        return InputSpec("table", (width,), tuple(len(column.values) + FIRST for column in self.categorical))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the input of :meth:`from_dict`."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        categorical = [column | {"values": list(column["values"])} for column in plain["categorical"]]
        return plain | {"numeric": list(plain["numeric"]), "categorical": categorical}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FeatureEncoder:
        """The encoder from the output of :meth:`to_dict`."""
        if not isinstance(content, Mapping):
            raise InputError(f"an encoder is a mapping, not {type(content).__name__}")
        encoder: FeatureEncoder = validate_value(cls, content, "encoder")
        return encoder

    def unseen(self, frame: pl.DataFrame) -> dict[str, int]:
        """Number of rows with a value without a code of its own, for each categorical column that has such rows."""
        codes = {column.name: _codes(as_text(frame, column.name), column.values) for column in self.categorical}
        return _positive({name: int((found == UNKNOWN).sum()) for name, found in codes.items()})

    def missing(self, frame: pl.DataFrame) -> dict[str, int]:
        """Number of rows with a missing or infinite value, for each column that has such rows."""
        finite = {column.name: int(as_numbers(frame, column.name).is_finite().sum()) for column in self.numeric}
        counts = {name: len(frame) - count for name, count in finite.items()}
        return _positive(counts | {c.name: as_text(frame, c.name).null_count() for c in self.categorical})

    def infinite(self, frame: pl.DataFrame) -> dict[str, int]:
        """Number of rows with an infinite value, for each numeric column that has such rows."""
        return _positive({c.name: int(as_numbers(frame, c.name).is_infinite().sum()) for c in self.numeric})


def _positive(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _standard(name: str, values: NDArray[np.float64]) -> NumericColumn:
    """The statistics of a column over its finite values."""
    finite = values[np.isfinite(values)]
    indicator = len(finite) < len(values)
    if not len(finite) or finite.min() == finite.max():
        return NumericColumn(name, float(finite[0]) if len(finite) else 0.0, 0.0, indicator)
    largest = float(np.abs(finite).max())  # scaling by it keeps squares of huge values finite
    scaled = finite / largest
    return NumericColumn(name, float(scaled.mean()) * largest, float(scaled.std()) * largest, indicator)


def _frequent(text: pl.Series, min_count: int) -> tuple[str, ...]:
    """The values on at least ``min_count`` rows, by decreasing frequency, ties by name."""
    counts = text.drop_nulls().alias("value").value_counts(name="rows").filter(pl.col("rows") >= min_count)
    return tuple(counts.sort("rows", "value", descending=[True, False])["value"])


def _codes(text: pl.Series, values: Sequence[str]) -> NDArray[np.int64]:
    names, numbers = pl.Series(values, dtype=pl.String), pl.Series(range(FIRST, FIRST + len(values)), dtype=pl.Int64)
    known = text.replace_strict(names, numbers, default=UNKNOWN, return_dtype=pl.Int64)
    codes: NDArray[np.int64] = np.where(text.is_null().to_numpy(), MISSING, known.to_numpy())
    return codes


def _numbers(frame: pl.DataFrame, names: Iterable[str], source: str) -> NDArray[np.float64]:
    """Columns as floats, shape (N, number of names), NaN where the value is missing."""
    columns = [as_numbers(frame, name, source=source).to_numpy() for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))


def as_numbers(frame: pl.DataFrame, name: str, *, source: str = "", rows: NDArray[np.int64] | None = None) -> pl.Series:
    """A column as floats, null or NaN where the value is missing; text is parsed as numbers.

    ``source`` is the name of the file in messages, ``rows`` are the row numbers in messages (0, 1, ... by default).
    """
    column = column_of(frame, name, source)
    if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.Float64)
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise InputError(f"{prefix(source)}column {name!r} has values of type {column.dtype}, not numbers")
    text = as_text(frame, name, source=source)
    numbers = text.cast(pl.Float64, strict=False)
    refuse_wrong(text.is_not_null() & numbers.is_null(), column, source, rows)
    return numbers


def refuse_wrong(wrong: pl.Series, column: pl.Series, source: str, rows: NDArray[np.int64] | None = None) -> None:
    """Raise an error for the first value that is not a number, with its row."""
    if wrong.any():
        row = int(wrong.arg_true()[0])
        number = row if rows is None else int(rows[row])
        raise InputError(f"{place(number, source, column.name)}: {column[row]!r} is not a number")


def as_text(frame: pl.DataFrame, name: str, *, source: str = "") -> pl.Series:
    """A column as text without surrounding blanks, null where the value is missing (blank or NaN). A whole number is the same
    text in integer and in float columns.
    """
    column = column_of(frame, name, source)
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise InputError(f"{prefix(source)}column {name!r} has values of type {column.dtype}, not categories")
    if column.dtype.is_float():
        column = column.fill_nan(None)
        whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
        integers = column.cast(pl.Int64, strict=False).cast(pl.String)
        return integers.zip_with(whole.fill_null(False), column.cast(pl.String))
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def column_of(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    """A column; an InputError with the nearest name where it does not exist."""
    if name not in frame.columns:
        raise InputError(f"{prefix(source)}{unknown_name('column', name, frame.columns)}")
    return frame[name]


def prefix(source: str) -> str:
    """The name of the file at the start of a message."""
    return f"{source}: " if source else ""


def place(row: int, source: str, column: str) -> str:
    """The position of a value in messages; rows are counted from 0, like ids."""
    return f"row {row} (the first is 0){f' of {source}' if source else ''}, column {column}"
