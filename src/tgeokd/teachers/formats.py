"""Files of predictions: sample ids with probabilities or logits, as npz, safetensors or parquet. Nothing is unpickled."""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tgeokd.utils.errors import InputError, check_names, first_line, optional_import
from tgeokd.utils.files import replace_file

Kind = Literal["probs", "logits"]
Contents = tuple[Tensor, Kind, Tensor]

# raised by the readers for damaged files
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, BadZipFile, zlib.error, SafetensorError)


def read_predictions(path: str | Path) -> Contents:
    """The ids, the kind ``"probs"`` or ``"logits"``, and the values, float32, of a file of predictions.

    Args:
        path: ``.npz`` or ``.safetensors`` with arrays ``ids`` and either ``probs`` or ``logits``; ``.parquet`` with a column
            ``id`` and either a list column ``probs`` or ``logits``, or columns ``prob_0``, ... or ``logit_0``, ....
    """
    path = Path(path)
    check_names("format of predictions", [path.suffix], READERS)
    if not path.is_file():
        raise InputError(f"there is no file of predictions {path}")
    try:
        ids, kind, values = READERS[path.suffix](path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise InputError(f"cannot read the predictions {path}: {first_line(error)}") from error
    if ids.dtype == torch.uint64 and bool((ids.to(torch.int64) < 0).any()):
        raise InputError(f"{path}: ids must be below 2^63")
    if values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{path}: {kind} must be real numbers, not {values.dtype}")
    return ids, kind, values.float()


def write_predictions(path: str | Path, ids: Tensor, logits: Tensor) -> None:
    """Write ids, int64, shape (M,), and logits, float32, shape (M, C), in one atomic step."""
    path = Path(path)
    check_names("format of predictions", [path.suffix], READERS)
    ids, logits = ids.contiguous(), logits.contiguous()

    def write(temporary: Path) -> None:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:  # savez appends .npz to a name without it
                np.savez(file, ids=ids.numpy(), logits=logits.numpy())
        elif path.suffix == ".safetensors":
            save_file({"ids": ids, "logits": logits}, temporary)
        else:
            polars = optional_import("polars", "a parquet file")
            polars.DataFrame({"id": ids.numpy(), "logits": logits.numpy()}).write_parquet(temporary)

    try:
        replace_file(path, write)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the predictions {path}: {getattr(error, 'strerror', None) or error}") from error


def _kind_of(names: Iterable[str], id_name: str) -> Kind:
    """Whether a file has probabilities or logits; it must have ids too."""
    present = ", ".join(sorted(set(names))) or "nothing"
    if id_name not in names:
        raise InputError(f"must hold {id_name!r} beside the predictions, but holds {present}")
    found: list[Kind] = [kind for kind in ("probs", "logits") if kind in names]
    if len(found) != 1:
        raise InputError(f"must hold either 'probs' or 'logits', but holds {present}")
    return found[0]


def _read_npz(path: Path) -> Contents:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError("is one array, not an archive of named arrays; write it with numpy.savez")
    with archive:
        kind = _kind_of(archive.files, "ids")
        return _from_numpy("ids", archive["ids"]), kind, _from_numpy(kind, archive[kind])


def _from_numpy(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name} must be numbers, not of type {array.dtype}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite values are rejected later, with their row
            array = array.astype(np.float32)
    # torch requires native byte order and writable memory
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _read_safetensors(path: Path) -> Contents:
    with safe_open(path, framework="pt") as archive:
        kind = _kind_of(archive.keys(), "ids")
        return archive.get_tensor("ids"), kind, archive.get_tensor(kind)


def _read_parquet(path: Path) -> Contents:
    polars = optional_import("polars", "a parquet file")
    try:
        names = list(polars.read_parquet_schema(path))
        columns = {kind: [kind] for kind in ("probs", "logits") if kind in names}
        for kind, stem in (("probs", "prob"), ("logits", "logit")):
            numbered = [name for name in names if re.fullmatch(rf"{stem}_\d+", name)]
            expected = [f"{stem}_{i}" for i in range(len(numbered))]
            missing = sorted(set(expected) - set(numbered))
            if numbered and kind in columns:
                raise InputError(f"holds both a column {kind!r} and columns {stem}_0, ...")
            if missing:
                raise InputError(f"holds {len(numbered)} columns {stem}_0, ..., but not {missing[0]}")
            if numbered:
                columns[kind] = expected
        kind = _kind_of([*names, *columns], "id")
        frame = polars.read_parquet(path, columns=["id", *columns[kind]])
        for name in frame.columns:
            if frame[name].null_count():
                raise InputError(f"column {name!r} has {frame[name].null_count()} missing values")
        values = _of_lists(polars, frame[kind]) if columns[kind] == [kind] else frame[columns[kind]].to_numpy()
    except polars.exceptions.PolarsError as error:
        raise ValueError(str(error)) from error
    return _from_numpy("id", frame["id"].to_numpy()), kind, _from_numpy(kind, values)


def _of_lists(polars: Any, column: Any) -> np.ndarray[Any, Any]:
    """A column of lists of equal length as an array, shape (M, C)."""
    if isinstance(column.dtype, polars.Array):
        column = column.arr.to_list()
    if not isinstance(column.dtype, polars.List):
        raise InputError(f"column {column.name!r} must hold one list per row, not {column.dtype}")
    lengths = column.list.len()
    if not len(column) or lengths.min() != lengths.max() or not lengths.min():
        raise InputError(f"the lists of column {column.name!r} have {lengths.min()} to {lengths.max()} numbers")
    return np.asarray(column.explode().to_numpy()).reshape(len(column), -1)


READERS = {".npz": _read_npz, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
