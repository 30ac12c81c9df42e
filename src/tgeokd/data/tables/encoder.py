"""Columns of a table as the two arrays a model reads: standardised numbers and integer codes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError, unknown_name
from tgeokd.utils.validation import validate_value

__all__ = ["CategoricalColumn", "FeatureEncoder", "NumericColumn", "as_numbers", "as_text", "place"]

MISSING, UNKNOWN, FIRST = 0, 1, 2  # codes of a categorical column: the known values follow from FIRST on
LISTED = 20  # names that a message lists


@dataclass(frozen=True)
class NumericColumn:
    """A standardised column.

    Attributes:
        name: of the column.
        mean: of the values that are not missing.
        sd: their standard deviation (divided by N), 0 for a constant column.
        indicator: whether a further feature tells where the column is missing.
    """

    name: str
    mean: float
    sd: float
    indicator: bool


@dataclass(frozen=True)
class CategoricalColumn:
    """A coded column.

    Attributes:
        name: of the column.
        values: the values with a code of their own, ``values[0]`` having code 2.
    """

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class FeatureEncoder:
    """How the columns of a table become a model's inputs; fitted on training rows, kept with the student.

    Numeric columns are standardised by the mean and the standard deviation of the rows it was fitted on. Missing values (null,
    NaN, infinite, or too large for float32 once standardised) become 0, the mean; a column with missing values among the
    fitted rows has one more feature, 1 where the value is missing. Constant columns become 0.

    Categorical columns become codes: 0 where missing (null, NaN or blank), 1 for a value that was rarer than ``min_count`` or
    never seen, then the values by decreasing frequency, equal ones by name. Values are compared as text without blanks around
    it, and a whole number is the same value whether its column is stored as integers or as floats.

    Rows are counted from 0 in messages, as the ``ids`` of a task are.

    Attributes:
        numeric: the numeric columns, in the order of the features.
        categorical: the categorical columns, in the order of the features.
        unknown: what :meth:`transform` does with a value it has no code for: ``code`` (code 1) or ``error``.
    """

    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]
    unknown: Literal["code", "error"] = "code"

    def __post_init__(self) -> None:
        names = [*(column.name for column in self.numeric), *(column.name for column in self.categorical)]
        if not names:
            raise InputError("there is no column to encode")
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"column {min(twice)!r} is listed twice among the features")

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        *,
        numeric: Sequence[str],
        categorical: Sequence[str],
        min_count: int = 1,
        unknown: Literal["code", "error"] = "code",
    ) -> FeatureEncoder:
        """Learn means, deviations and codes from training rows.

        Args:
            frame: the training rows.
            numeric: columns to standardise; text is read as numbers.
            categorical: columns to code.
            min_count: rows a categorical value needs for a code of its own.
            unknown: see the class. ``error`` needs ``min_count=1``: a rare value has no code to be known by.

        Raises:
            InputError: for a missing column, a value that is not a number, no rows, or no columns.
        """
        if min_count < 1:
            raise InputError(f"min_count must be >= 1, not {min_count}")
        if unknown == "error" and min_count > 1:
            raise InputError(f"unknown='error' needs min_count=1, not {min_count}: rare values have no code")
        if not len(frame):
            raise InputError("there is no row to fit the encoder on")
        values = _numbers(frame, numeric, "")
        return cls(
            tuple(_standard(name, values[:, i]) for i, name in enumerate(numeric)),
            tuple(CategoricalColumn(name, _frequent(as_text(frame, name), min_count)) for name in categorical),
            unknown,
        )

    def transform(self, frame: pl.DataFrame, *, source: str = "") -> tuple[Tensor, Tensor]:
        """The model's inputs.

        Args:
            frame: any rows with the encoder's columns; others are ignored.
            source: where the rows come from, for messages.

        Returns:
            Numbers, shape (N, M), float32, the indicators of missing values after the columns; codes, shape (N, K), int64.

        Raises:
            InputError: for a missing column, a value that is not a number, or with ``unknown="error"`` an unknown value.
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

        codes = np.empty((len(frame), len(self.categorical)), dtype=np.int64)
        for i, column in enumerate(self.categorical):
            text = as_text(frame, column.name, source=source)
            codes[:, i] = _codes(text, column.values)
            if self.unknown == "error" and (codes[:, i] == UNKNOWN).any():
                row = int((codes[:, i] == UNKNOWN).argmax())
                raise InputError(
                    f"{place(row, source, column.name)}: {_unknown('value', str(text[row]), column.values)}"
                )
        return torch.from_numpy(features), torch.from_numpy(codes)

    @property
    def inputs(self) -> InputSpec:
        """What a model must know: the number of numeric features, and of codes of each categorical column."""
        width = len(self.numeric) + sum(column.indicator for column in self.numeric)
        return InputSpec("table", (width,), tuple(len(column.values) + FIRST for column in self.categorical))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the numeric features, then of the categorical ones."""
        flags = [f"{column.name} is missing" for column in self.numeric if column.indicator]
        return (*(column.name for column in self.numeric), *flags, *(column.name for column in self.categorical))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which :meth:`from_dict` makes the same encoder."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        for column in plain["categorical"]:
            column["values"] = list(column["values"])
        return plain | {"numeric": list(plain["numeric"]), "categorical": list(plain["categorical"])}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FeatureEncoder:
        """The encoder :meth:`to_dict` wrote.

        Raises:
            InputError: for anything else.
        """
        if not isinstance(content, Mapping):
            raise InputError(f"an encoder is a mapping, not {type(content).__name__}")
        encoder: FeatureEncoder = validate_value(cls, content, "encoder")
        return encoder

    def unseen(self, frame: pl.DataFrame) -> dict[str, int]:
        """Rows whose value has no code of its own, for each categorical column that has such rows."""
        counts = {
            column.name: int((_codes(as_text(frame, column.name), column.values) == UNKNOWN).sum())
            for column in self.categorical
        }
        return {name: count for name, count in counts.items() if count}

    def missing(self, frame: pl.DataFrame) -> dict[str, int]:
        """Rows without a value, infinite ones among them, for each column that has such rows."""
        counts = {
            column.name: len(frame) - int(as_numbers(frame, column.name).is_finite().sum()) for column in self.numeric
        }
        counts |= {column.name: as_text(frame, column.name).null_count() for column in self.categorical}
        return {name: count for name, count in counts.items() if count}

    def infinite(self, frame: pl.DataFrame) -> dict[str, int]:
        """Rows with an infinite value, for each numeric column that has such rows."""
        counts = {column.name: int(as_numbers(frame, column.name).is_infinite().sum()) for column in self.numeric}
        return {name: count for name, count in counts.items() if count}


def _standard(name: str, values: NDArray[np.float64]) -> NumericColumn:
    """The column's statistics over its finite values."""
    finite = values[np.isfinite(values)]
    indicator = len(finite) < len(values)
    if not len(finite) or finite.min() == finite.max():
        return NumericColumn(name, float(finite[0]) if len(finite) else 0.0, 0.0, indicator)
    largest = float(np.abs(finite).max())  # scaled by it, squares of huge values do not overflow
    scaled = finite / largest
    return NumericColumn(name, float(scaled.mean()) * largest, float(scaled.std()) * largest, indicator)


def _frequent(text: pl.Series, min_count: int) -> tuple[str, ...]:
    """The values on at least ``min_count`` rows, by decreasing frequency, equal ones by name."""
    counts = text.drop_nulls().alias("value").value_counts(name="rows").filter(pl.col("rows") >= min_count)
    return tuple(counts.sort("rows", "value", descending=[True, False])["value"])


def _codes(text: pl.Series, values: Sequence[str]) -> NDArray[np.int64]:
    known = text.replace_strict(
        pl.Series(values, dtype=pl.String),
        pl.Series(range(FIRST, FIRST + len(values)), dtype=pl.Int64),
        default=UNKNOWN,
        return_dtype=pl.Int64,
    )
    codes: NDArray[np.int64] = np.where(text.is_null().to_numpy(), MISSING, known.to_numpy())
    return codes


def _numbers(frame: pl.DataFrame, names: Iterable[str], source: str) -> NDArray[np.float64]:
    """Columns as floats, shape (N, number of names), NaN where there is no value."""
    columns = [as_numbers(frame, name, source=source).to_numpy() for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))


def as_numbers(frame: pl.DataFrame, name: str, *, source: str = "", rows: NDArray[np.int64] | None = None) -> pl.Series:
    """A column as floats, null or NaN where there is no value; text is read as numbers.

    Args:
        frame: the rows.
        name: of the column.
        source: where the rows come from, for messages.
        rows: their row numbers there, for messages; 0, 1, ... by default.

    Raises:
        InputError: for a missing column, one of another type, or text that is not a number, with its row.
    """
    column = _column(frame, name, source)
    if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.Float64)
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise InputError(f"{_of(source)}column {name!r} has values of type {column.dtype}, not numbers")
    text = as_text(frame, name, source=source)
    numbers = text.cast(pl.Float64, strict=False)
    wrong = text.is_not_null() & numbers.is_null()
    if wrong.any():
        row = int(wrong.arg_true()[0])
        number = row if rows is None else int(rows[row])
        raise InputError(f"{place(number, source, name)}: {column[row]!r} is not a number")
    return numbers


def as_text(frame: pl.DataFrame, name: str, *, source: str = "") -> pl.Series:
    """A column as text without blanks around it, null where there is no value (blank or NaN); a whole number is the same text
    whether its column is of integers or of floats.

    Raises:
        InputError: for a missing column, or one of lists, structures or bytes.
    """
    column = _column(frame, name, source)
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise InputError(f"{_of(source)}column {name!r} has values of type {column.dtype}, not categories")
    if column.dtype.is_float():
        column = column.fill_nan(None)
        whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
        integers = column.cast(pl.Int64, strict=False).cast(pl.String)
        return integers.zip_with(whole.fill_null(False), column.cast(pl.String))
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _column(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    if name not in frame.columns:
        raise InputError(_of(source) + _unknown("column", name, frame.columns))
    return frame[name]


def _of(source: str) -> str:
    return f"{source}: " if source else ""


def place(row: int, source: str, column: str) -> str:
    """Where a value is, for messages; rows are counted from 0, as ids are."""
    return f"row {row} (the first is 0){f' of {source}' if source else ''}, column {column}"


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Like :func:`unknown_name`, but only the nearest of many names."""
    if len(known) <= LISTED:
        return str(unknown_name(kind, name, known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown {kind} {name!r}{f'; did you mean {near[0]!r}?' if near else ';'} {len(known)} are known"
