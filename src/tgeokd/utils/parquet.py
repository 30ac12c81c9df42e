"""Parquet files, whose reader may panic on a damaged one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tgeokd.utils.errors import InputError, one_line, optional_import
from tgeokd.utils.integrity import verify_checksum
from tgeokd.utils.limits import check_expanded

PANIC = "PanicException"  # polars raises it, a BaseException, where it did not expect what a file holds


def read_parquet(path: Path | Sequence[Path], source: object, **options: Any) -> Any:
    """``polars.read_parquet``, with one kind of error.

    Args:
        path: of the file, or of the parts of a table. A file is compared with ``FILE.sha256``, if there is one.
        source: its name in messages.
        options: of polars.

    Raises:
        InputError: for a file that is damaged, lacks a column, or declares more data than the limit.
    """
    with reading(source) as polars:
        for each in [path] if isinstance(path, Path) else path:
            verify_checksum(each, "the file")
            _check_size(each, source)
        return polars.read_parquet(path, **options)


@contextmanager
def reading(source: object) -> Iterator[Any]:
    """Polars, whose errors in this block become InputErrors."""
    polars = optional_import("polars", "a parquet file")
    try:
        yield polars
    except InputError:
        raise
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        raise InputError(f"{source} is not a Parquet file, or is damaged: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise InputError(f"{source} is damaged: {one_line(error)}") from None


def _check_size(path: Path, source: object) -> None:
    """Refuse a file that declares more data than the limit; its reader checks that it is no more than that."""
    arrow = optional_import("pyarrow.parquet", "a parquet file")
    try:
        metadata = arrow.read_metadata(path)
        total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    except Exception:  # polars reads it or says what is wrong
        return
    check_expanded(path, total, source)
