"""What the attack detection tasks share: raw tables with their faulty rows, and the way from a table to a task."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.data.base import TaskData
from tgeokd.data.encoder import FeatureEncoder
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import oversample as oversampled
from tgeokd.errors import InputError
from tgeokd.loaders import ArrayDataset
from tgeokd.metrics import Metrics

__all__ = ["NAMES", "RawTable", "attack_task", "found", "read_table"]

Rows = NDArray[np.int64]

NAMES = ("accuracy", "nll", "macro_f1", "macro_auc", "recall", "detection_rate")
_SHOWN = 5  # columns listed in the notes


@dataclass(frozen=True)
class RawTable:
    """A file's rows as they are.

    Attributes:
        path: of the file.
        frame: the rows that could be split into columns, with their values as text (of Parquet: as stored).
        rows: which row of the file each row of the frame is, from 0 without the header, shape (len(frame),).
        faults: what is wrong with the other rows, by row of the file.
    """

    path: Path
    frame: pl.DataFrame
    rows: Rows
    faults: dict[int, str]

    def numbers(self, names: Sequence[str]) -> RawTable:
        """The table with some columns as float64; null where there is no value, faults where it is no number.

        Without a value: nothing, blanks, and ``?``. ``inf``, ``Infinity`` and ``NaN`` are read as such, whatever their case.
        """
        text = [name for name in names if self.frame[name].dtype == pl.String]
        stored = [name for name in names if name not in text]
        for name in stored:
            if not self.frame[name].dtype.is_numeric() and self.frame[name].dtype not in (pl.Boolean, pl.Null):
                raise InputError(f"{self.path}: column {name!r} holds {self.frame[name].dtype}, not numbers")
        stripped = self.frame.with_columns(_value(text))
        frame = stripped.with_columns(pl.col(text).cast(pl.Float64, strict=False), pl.col(stored).cast(pl.Float64))
        faults = dict(self.faults)
        for name in text:
            if frame[name].null_count() > stripped[name].null_count():
                wrong = frame[name].is_null() & stripped[name].is_not_null()
                for i in wrong.arg_true():
                    faults.setdefault(int(self.rows[i]), f"column {name}: {stripped[name][i]!r} is not a number")
        return RawTable(self.path, frame, self.rows, faults)

    def labels(self, column: str, classes: Mapping[str, int]) -> tuple[RawTable, Rows]:
        """The class of each row by the text of its label, -1 with a fault where the label is unknown or missing.

        A label may be stored as a number; whole numbers are written without decimals.
        """
        marker = self.frame[column]
        if marker.dtype.is_float() and bool((marker == marker.floor()).all()):
            marker = marker.cast(pl.Int64)
        marker = marker.cast(pl.String).str.strip_chars(" \t'\"")
        target = np.array([classes.get(text, -1) if text is not None else -1 for text in marker], dtype=np.int64)
        faults = dict(self.faults)
        known = ", ".join(list(classes)[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        for i in np.flatnonzero(target < 0):
            given = repr(marker[int(i)]) if marker[int(i)] else "nothing"
            faults.setdefault(int(self.rows[i]), f"column {column} holds {given}, expected one of: {known}")
        return RawTable(self.path, self.frame, self.rows, faults), target

    def refuse_faults(self, hint: str = "") -> None:
        """Raise an InputError for the first faulty row, if there is one; ``hint`` ends the message."""
        if self.faults:
            row = min(self.faults)
            more = f" ({len(self.faults)} rows of this file are faulty)" if len(self.faults) > 1 else ""
            raise InputError(f"{self.path}: row {row} (the first is 0): {self.faults[row]}{more}{hint}")


def found(data_dir: Path, folders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first of some files or folders that is in one of some folders of ``data_dir``, or directly in it."""
    names = list(names)
    places = [Path(data_dir) / folder / name for folder in (*folders, "") for name in names]
    return next((place for place in places if place.exists()), None)


def read_table(path: Path, columns: Sequence[str] | None = None) -> RawTable:
    """A table from CSV (``.csv``, ``.txt``), ARFF (``.arff``) or Parquet (``.parquet``).

    ARFF is read as its header and, from ``@data`` on, as CSV: its attributes' declared types are not needed, ``%`` starts a
    comment, and ``?`` is a missing value. Sparse ARFF is not read.

    Args:
        path: the file.
        columns: names of the columns of a CSV file without a header; None where the first line holds them.

    Raises:
        InputError: for a file that cannot be read, another ending, no rows, or a column named twice.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".txt", ".arff", ".parquet"):
        raise InputError(f"{path}: expected a file ending in .csv, .txt, .arff or .parquet")
    try:
        if kind == ".parquet":
            frame = pl.read_parquet(path)
            table = RawTable(path, frame, np.arange(len(frame)), {})
        else:
            lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
            if kind == ".arff":
                columns, lines = _arff(lines, path)
            elif columns is None:
                columns, lines = [name.strip(" \t\r'\"") for name in lines[0].split(",")] if lines else [], lines[1:]
            if twice := {name for name in columns if columns.count(name) > 1}:
                raise InputError(f"{path}: two columns are named {min(twice)!r}")
            table = _split(lines, columns, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from error
    except pl.exceptions.PolarsError as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not len(table.frame) and not table.faults:
        raise InputError(f"{path} holds no rows")
    return table


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
    files: Iterable[Path],
    notes: Mapping[str, Any],
    test_groups: Mapping[str, NDArray[np.bool_]] | None = None,
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
        files: what was read, for checksums.
        notes: what else is to be noted.
        test_groups: masks over the rows of the test part.
    """
    metrics = Metrics(NAMES, "macro_f1", tuple(attack_classes), tuple(class_names))
    train, held_out, test = parts
    y = torch.from_numpy(target)
    metrics.check(y[test], len(class_names))
    encoder = FeatureEncoder.fit(frame[train], numeric=numeric, categorical=categorical)
    labels, corrupted = symmetric_noise(y[train], noise, len(class_names), seed)
    kept = oversampled(labels.numpy(), seed=seed) if oversample else np.arange(len(train))
    numbers, codes = encoder.transform(frame)

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
        {
            "files": {path.name: _sha256(path) for path in files},
            **notes,
            "rows": {"train": len(train), "oversampled": len(kept) - len(train), "held_out": len(held_out)}
            | {"test": len(test)},
            "class_counts": {
                name: {label: int((values == c).sum()) for c, label in enumerate(class_names)}
                for name, values in (("train", y[train]), ("held_out", y[held_out]), ("test", y[test]))
            },
            "wrong_training_labels": int(corrupted.sum()),
            "missing": _most(encoder.missing(frame)),
            "infinite": _most(encoder.infinite(frame)),
            "unseen_in_test": encoder.unseen(frame[test]),
        },
        {name: torch.from_numpy(mask) for name, mask in (test_groups or {}).items()},
        encoder,
    )


def _value(names: Sequence[str]) -> pl.Expr:
    """Columns of text without blanks around it, null where there is no value."""
    text = pl.col(names).str.strip_chars()
    return pl.when(text.is_in(["", "?"])).then(None).otherwise(text).name.keep()


def _arff(lines: list[str], path: Path) -> tuple[list[str], list[str]]:
    """The names of the attributes and the lines of data."""
    columns: list[str] = []
    for i, line in enumerate(lines):
        word, *more = line.split(maxsplit=1)
        rest = more[0] if more else ""
        if word.lower() == "@data":
            return columns, [line for line in lines[i + 1 :] if not line.lstrip().startswith("%")]
        if word.lower() == "@attribute":
            quoted = rest[:1] in ("'", '"')
            columns.append(rest[1:].partition(rest[0])[0] if quoted else rest.split(maxsplit=1)[0] if rest else "")
    raise InputError(f"{path} has no line @data, so it is not an ARFF file")


def _split(lines: list[str], columns: Sequence[str], path: Path) -> RawTable:
    """Lines as a frame of text, those with another number of values as faults."""
    counts = np.array([line.count(",") + 1 for line in lines], dtype=np.int64)
    fits = counts == len(columns)
    faults = {int(i): f"{counts[i]} values for {len(columns)} columns" for i in np.flatnonzero(~fits)}
    rows = np.flatnonzero(fits)
    if not len(rows):
        return RawTable(path, pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), rows, faults)
    text = "\n".join(lines[i] for i in rows)
    frame = pl.read_csv(
        io.StringIO(text), has_header=False, new_columns=list(columns), infer_schema=False, quote_char=None
    )
    return RawTable(path, frame, rows, faults)


def _most(counts: dict[str, int]) -> dict[str, Any]:
    """A count by column, shortened to the columns with most."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return {"values": sum(counts.values()), "columns": len(counts), "most": dict(largest)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
