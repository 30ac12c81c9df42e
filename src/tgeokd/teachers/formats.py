"""Files of predictions: ids with probabilities or logits, in npz, safetensors and parquet. Nothing is unpickled."""

from __future__ import annotations

import importlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tgeokd.utils.errors import InputError
from tgeokd.utils.files import replace_file
from tgeokd.utils.registry import look_up

__all__ = ["Kind", "read_predictions", "write_predictions"]

Kind = Literal["probs", "logits"]
Contents = tuple[Tensor, Kind, Tensor]

# What the readers of damaged files raise.
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


def read_predictions(path: str | Path) -> Contents:
    """What a file holds.

    Args:
        path: ``.npz`` or ``.safetensors`` with arrays ``ids`` and one of ``probs`` and ``logits``; ``.parquet`` with a
            column ``id`` and either one list column ``probs`` or ``logits``, or columns ``prob_0``, ... or ``logit_0``, ....

    Returns:
        The ids, int64; whether these are ``"probs"`` or ``"logits"``; the values, float32.

    Raises:
        InputError: for a file that is missing, damaged, of another format, or does not hold these.
    """
    path = Path(path)
    read, _ = look_up("format of predictions", path.suffix, FORMATS)
    if not path.is_file():
        raise InputError(f"there is no file of predictions {path}")
    try:
        ids, kind, values = read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read the predictions {path}: {reason}") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"{path}: ids must be whole numbers, not {ids.dtype}")
    if ids.dtype == torch.uint64 and bool((ids.to(torch.int64) < 0).any()):
        raise InputError(f"{path}: ids must be below 2^63")
    if values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{path}: {kind} must be real numbers, not {values.dtype}")
    return ids.to(torch.int64), kind, values.float()


def write_predictions(path: str | Path, ids: Tensor, logits: Tensor) -> None:
    """Write ids, int64, shape (M,), and logits, float32, shape (M, C); the file is either the old one or the whole new one.

    Raises:
        InputError: for another format than those read, or a file that cannot be written.
    """
    path = Path(path)
    _, write = look_up("format of predictions", path.suffix, FORMATS)
    try:
        replace_file(path, lambda temporary: write(temporary, ids.contiguous(), logits.contiguous()))
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the predictions {path}: {getattr(error, 'strerror', None) or error}") from error


def _the_kind(names: Iterable[str]) -> Kind:
    """Which of the two a file holds."""
    held: list[Kind] = [kind for kind in ("probs", "logits") if kind in names]
    if len(held) != 1:
        raise InputError(f"must hold either 'probs' or 'logits', but holds {', '.join(sorted(names)) or 'nothing'}")
    return held[0]


def _need_ids(name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise InputError(
            f"must hold {name!r} beside the predictions, but holds {', '.join(sorted(names)) or 'nothing'}"
        )


# ---- npz


def _read_npz(path: Path) -> Contents:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError("is one array, not an archive of named arrays; write it with numpy.savez")
    with archive:
        _need_ids("ids", archive.files)
        kind = _the_kind(archive.files)
        return _from_numpy("ids", archive["ids"]), kind, _from_numpy(kind, archive[kind])


def _write_npz(path: Path, ids: Tensor, logits: Tensor) -> None:
    with path.open("wb") as file:  # savez appends .npz to a name without it
        np.savez(file, ids=ids.numpy(), logits=logits.numpy())


def _from_numpy(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name} must be numbers, not of type {array.dtype}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is refused later, with its row
            array = array.astype(np.float32)
    # torch takes only native byte order and writable memory, which polars does not always give
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


# ---- safetensors


def _read_safetensors(path: Path) -> Contents:
    with safe_open(path, framework="pt") as archive:
        names = list(archive.keys())
        _need_ids("ids", names)
        kind = _the_kind(names)
        return archive.get_tensor("ids"), kind, archive.get_tensor(kind)


def _write_safetensors(path: Path, ids: Tensor, logits: Tensor) -> None:
    save_file({"ids": ids, "logits": logits}, path)


# ---- parquet


def _read_parquet(path: Path) -> Contents:
    polars = _polars()
    try:
        names = list(polars.read_parquet_schema(path))
        _need_ids("id", names)
        lists = {"probs": ["probs"], "logits": ["logits"]}
        columns = {kind: names_of for kind, names_of in lists.items() if names_of[0] in names}
        for kind, stem in (("probs", "prob"), ("logits", "logit")):
            numbered = [name for name in names if re.fullmatch(rf"{stem}_\d+", name)]
            if numbered and kind in columns:
                raise InputError(f"holds both a column {kind!r} and columns {stem}_0, ...")
            if numbered:
                columns[kind] = [f"{stem}_{i}" for i in range(len(numbered))]
                missing = sorted(set(columns[kind]) - set(numbered))
                if missing:
                    raise InputError(f"holds {len(numbered)} columns {stem}_0, ..., but not {missing[0]}")
        kind = _the_kind(columns if columns else names)
        frame = polars.read_parquet(path, columns=["id", *columns[kind]])
        for name in frame.columns:
            if frame[name].null_count():
                raise InputError(f"column {name!r} has {frame[name].null_count()} missing values")
        values = _of_lists(frame[kind]) if columns[kind] == [kind] else frame[columns[kind]].to_numpy()
    except polars.exceptions.PolarsError as error:
        raise ValueError(str(error)) from error
    return _from_numpy("id", frame["id"].to_numpy()), kind, _from_numpy(kind, values)


def _of_lists(column: Any) -> np.ndarray[Any, Any]:
    """A column of lists of one length as an array, shape (M, C)."""
    polars = _polars()
    if isinstance(column.dtype, polars.Array):
        column = column.arr.to_list()
    if not isinstance(column.dtype, polars.List):
        raise InputError(f"column {column.name!r} must hold a list a row, not {column.dtype}")
    lengths = column.list.len()
    if not len(column) or lengths.min() != lengths.max() or not lengths.min():
        raise InputError(f"the lists of column {column.name!r} have {lengths.min()} to {lengths.max()} numbers")
    return np.asarray(column.explode().to_numpy()).reshape(len(column), -1)


def _write_parquet(path: Path, ids: Tensor, logits: Tensor) -> None:
    _polars().DataFrame({"id": ids.numpy(), "logits": logits.numpy()}).write_parquet(path)


def _polars() -> Any:
    try:
        return importlib.import_module("polars")
    except ImportError as error:
        raise InputError("parquet files need polars: pip install 'tgeokd[tabular]'") from error


FORMATS: dict[str, tuple[Callable[[Path], Contents], Callable[[Path, Tensor, Tensor], None]]] = {
    ".npz": (_read_npz, _write_npz),
    ".safetensors": (_read_safetensors, _write_safetensors),
    ".parquet": (_read_parquet, _write_parquet),
}
