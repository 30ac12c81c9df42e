"""Files of predictions: sample ids with probabilities or logits, as npz, safetensors or parquet. Nothing is unpickled.

A file may also say what it is about, to be checked: the names of its classes, and for each sample its label and a hash of its
inputs (:func:`~tgeokd.teachers.cache.key.row_digests`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tgeokd.utils.documents import parse_json
from tgeokd.utils.errors import InputError, check_names, first_line, optional_import
from tgeokd.utils.files import user_path
from tgeokd.utils.integrity import verify_checksum, write_with_checksum
from tgeokd.utils.limits import check_zip
from tgeokd.utils.parquet import read_parquet, reading

Kind = Literal["probs", "logits"]


@dataclass(frozen=True)
class Contents:
    """What a file of predictions holds.

    Attributes:
        ids: of the M samples, shape (M,).
        kind: ``"probs"`` or ``"logits"``.
        values: one or C numbers for each sample.
        class_names: names of the C classes, in the order of the columns; empty where the file has none.
        labels: class index, in this order, or class name of each sample; None where the file has none.
        hashes: of the inputs of each sample, int64, shape (M,); None where the file has none.
    """

    ids: Tensor
    kind: Kind
    values: Tensor
    class_names: tuple[str, ...] = ()
    labels: Tensor | list[str] | None = None
    hashes: Tensor | None = None


COLUMNS = {"ids": "id", "labels": "label", "hashes": "hash"}  # in Parquet

# raised by the readers for damaged files
DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, MemoryError, RecursionError),
    *(BadZipFile, zlib.error, SafetensorError),
)


def read_predictions(path: str | Path) -> Contents:
    """The contents of a file of predictions, the values in float32.

    Args:
        path: ``.npz`` or ``.safetensors`` with arrays ``ids`` and either ``probs`` or ``logits``; ``.parquet`` with a column
            ``id`` and either a list column ``probs`` or ``logits``, or columns ``prob_0``, ... or ``logit_0``, ...; or with
            the names of the classes, ``prob_cat``, .... Optional: arrays ``labels`` and ``hashes``, in Parquet the columns
            ``label`` and ``hash``; names in an array ``class_names``, in safetensors in its metadata as JSON.
    """
    path = user_path(path)
    check_names("format of predictions", [path.suffix], READERS)
    if not path.is_file():
        raise InputError(f"there is no file of predictions {path}")
    verify_checksum(path, "the file of predictions")
    try:
        found = READERS[path.suffix](path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise InputError(f"cannot read the predictions {path}: {first_line(error)}") from error
    ids, values = found.ids, found.values
    if ids.dtype == torch.uint64 and bool((ids.to(torch.int64) < 0).any()):
        raise InputError(f"{path}: ids must be below 2^63")
    if values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{path}: {found.kind} must be real numbers, not {values.dtype}")
    return dataclasses.replace(found, values=values.float())


def write_predictions(
    path: str | Path,
    ids: Tensor,
    logits: Tensor,
    *,
    class_names: Sequence[str] = (),
    labels: Tensor | None = None,
    hashes: Tensor | None = None,
) -> None:
    """Write ids, int64, shape (M,), and logits, float32, shape (M, C), in one atomic step; for the rest see Contents."""
    path = user_path(path)
    check_names("format of predictions", [path.suffix], READERS)
    tensors = {"ids": ids, "logits": logits, "labels": labels, "hashes": hashes}
    numbers = list(map(str, range(len(class_names))))
    if path.suffix == ".parquet" and list(class_names) != numbers and any(map(str.isdecimal, class_names)):
        raise InputError(
            f"cannot write {path}: columns named after the classes {', '.join(class_names[:3])}, ... would be read as "
            "class indices; write .npz or .safetensors"
        )
    arrays = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}

    def write(temporary: Path) -> None:
        if path.suffix == ".npz":
            content: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
            if class_names:
                content["class_names"] = np.array(class_names)
            with temporary.open("wb") as file:  # savez appends .npz to a name without it
                np.savez(file, **content)
        elif path.suffix == ".safetensors":
            save_file(arrays, temporary, {"class_names": json.dumps(list(class_names))} if class_names else None)
        else:
            polars = optional_import("polars", "a parquet file")
            columns = {COLUMNS.get(name, name): tensor.numpy() for name, tensor in arrays.items()}
            if class_names:
                columns |= {
                    f"logit_{name}": column for name, column in zip(class_names, columns.pop("logits").T, strict=True)
                }
            polars.DataFrame(columns).write_parquet(temporary)

    if not path.parent.is_dir():
        raise InputError(f"cannot write the predictions {path}: there is no folder {path.parent}")
    write_with_checksum(path, write)


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
    check_zip(path)
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError("is one array, not an archive of named arrays; write it with numpy.savez")
    with archive:
        kind = _kind_of(archive.files, "ids")
        names = archive["class_names"] if "class_names" in archive.files else np.array([], dtype=str)
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise InputError(f"class_names must be texts, not of type {names.dtype} and shape {names.shape}")
        return Contents(
            *(_from_numpy("ids", archive["ids"]), kind, _from_numpy(kind, archive[kind])),
            class_names=tuple(map(str, names.astype(str).tolist())),
            labels=_labels(archive["labels"]) if "labels" in archive.files else None,
            hashes=_from_numpy("hashes", archive["hashes"]) if "hashes" in archive.files else None,
        )


def _labels(array: np.ndarray[Any, Any]) -> Tensor | list[str]:
    """Labels as names, where they are text, or as class indices."""
    return array.tolist() if array.dtype.kind in "UT" else _from_numpy("labels", array)


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
        names = parse_json((archive.metadata() or {}).get("class_names", "[]"), "the metadata")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError("class_names in the metadata must be a list of texts as JSON")
        further = {name: archive.get_tensor(name) for name in ("labels", "hashes") if name in archive.keys()}  # noqa: SIM118
        return Contents(archive.get_tensor("ids"), kind, archive.get_tensor(kind), tuple(names), **further)


def _read_parquet(path: Path) -> Contents:
    with reading("it") as polars:
        names = list(polars.read_parquet_schema(path))
        columns = {kind: [kind] for kind in ("probs", "logits") if kind in names}
        class_names: tuple[str, ...] = ()
        for kind, stem in (("probs", "prob"), ("logits", "logit")):
            single = [name for name in names if name.startswith(f"{stem}_")]
            numbered = [name for name in single if re.fullmatch(rf"{stem}_\d+", name)]
            expected = [f"{stem}_{i}" for i in range(len(numbered))] or single
            missing = sorted(set(expected) - set(single))
            if single and kind in columns:
                raise InputError(f"holds both a column {kind!r} and columns {expected[0]}, ...")
            if missing:
                raise InputError(f"holds {len(numbered)} columns {stem}_0, ..., but not {missing[0]}")
            if single:
                columns[kind] = expected
                class_names = () if numbered else tuple(name.removeprefix(f"{stem}_") for name in single)
        kind = _kind_of([*names, *columns], "id")
        further = [name for name in ("label", "hash") if name in names]
        frame = read_parquet(path, "it", columns=["id", *columns[kind], *further])
        for name in frame.columns:
            if frame[name].null_count():
                raise InputError(f"column {name!r} has {frame[name].null_count()} missing values")
        values = _of_lists(polars, frame[kind]) if columns[kind] == [kind] else frame[columns[kind]].to_numpy()
    text = "label" in further and frame["label"].dtype in (polars.String, polars.Categorical, polars.Enum)
    label = (
        (frame["label"].to_list() if text else _from_numpy("label", frame["label"].to_numpy()))
        if "label" in further
        else None
    )
    return Contents(
        *(_from_numpy("id", frame["id"].to_numpy()), kind, _from_numpy(kind, values), class_names),
        labels=label,
        hashes=_from_numpy("hash", frame["hash"].to_numpy()) if "hash" in further else None,
    )


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
