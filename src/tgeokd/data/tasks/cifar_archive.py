"""CIFAR's python archives: found, verified against the official checksums, and unpickled with arrays and plain values only."""

import _codecs
import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.integrity import sha256
from tgeokd.utils.limits import DAMAGED, Expanded

Checksum = Literal["official", "any"]

RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,  # numpy 1 wrote the official files
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


@dataclass(frozen=True)
class Archive:
    """The layout of a python archive of CIFAR, with the names and official MD5 sums of its members."""

    name: str  # of the data set
    folder: str  # of the members
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]  # the member with the class names
    keys: tuple[str, str]  # of the labels of a member, and of the class names

    @property
    def file(self) -> str:
        """Name of the archive."""
        return f"{self.name.lower()}-python.tar.gz"

    @property
    def members(self) -> tuple[tuple[str, str], ...]:
        """Names and official MD5 sums of all members."""
        return (*self.train, *self.test, self.meta)


@dataclass(frozen=True)
class Contents:
    """The contents of an archive."""

    images: Tensor  # of the training set, uint8, shape (N, 3, 32, 32)
    target: Tensor  # class indices, int64, shape (N,)
    test_images: Tensor
    test_target: Tensor
    class_names: tuple[str, ...]
    file: str  # name of the archive or folder
    sha256: str | None  # None for a folder
    md5: dict[str, str]  # of every member
    unofficial: dict[str, str]  # official MD5 sums of the members that have another one


def find_archive(archive: Archive, data_dir: Path) -> Path | None:
    """The archive, or the folder with its members, in the data folder; None where neither exists."""
    folder = data_dir / archive.folder
    for path in (data_dir / archive.file, folder / archive.file):
        if path.is_file():
            return path
    return folder if any((folder / name).is_file() for name, _ in archive.members) else None


def read_archive(archive: Archive, source: Path, checksum: Checksum) -> Contents:
    """Images and labels. The latest archive stays in memory, because a comparison loads its task for every run.

    ``checksum="official"`` refuses members with another MD5 sum than the official one, before they are unpickled.
    """
    files = [source] if source.is_file() else [source / name for name, _ in archive.members]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} does not exist")
    stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(Path.stat, files))
    return _read(archive, source, checksum, stamps)


@lru_cache(maxsize=1)
def _read(archive: Archive, source: Path, checksum: Checksum, stamps: tuple[tuple[int, int], ...]) -> Contents:
    members = _unpack(archive, source) if source.is_file() else _folder(archive, source)
    md5 = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in members.items()}
    unofficial = {name: official for name, official in archive.members if md5[name] != official}
    if unofficial and checksum == "official":
        name, official = next(iter(unofficial.items()))
        given = f"{name!r} has md5 {md5[name]} instead of the official {official}; it is damaged or another file"
        raise InputError(f"{source}: {given} (checksum=any accepts another archive of the same layout)")
    where = f"{source}: {archive.meta[0]!r}"
    found = _content(where, members[archive.meta[0]]).get(archive.keys[1])
    if not isinstance(found, list) or not found:
        raise InputError(f"{where} has no list {archive.keys[1]!r}")
    names = tuple(map(_text, found))
    images, target = _samples(archive, source, members, archive.train, len(names))
    test_images, test_target = _samples(archive, source, members, archive.test, len(names))
    digest = sha256(source) if source.is_file() else None
    return Contents(images, target, test_images, test_target, names, source.name, digest, md5, unofficial)


def _unpack(archive: Archive, source: Path) -> dict[str, bytes]:
    """The bytes of the members, in one pass over the compressed file."""
    wanted = {f"{archive.folder}/{name}": name for name, _ in archive.members}
    members: dict[str, bytes] = {}
    try:
        with source.open("rb") as file:
            expanded = Expanded(file, source.stat().st_size, source)
            with tarfile.open(fileobj=expanded, mode="r|") as tar:
                for entry in tar:
                    stream = tar.extractfile(entry) if entry.name in wanted and entry.isfile() else None
                    if stream is not None:
                        members[wanted[entry.name]] = stream.read()
                        if len(members[wanted[entry.name]]) != entry.size:
                            raise tarfile.ReadError("unexpected end of data")
            while expanded.read(1 << 20):  # to the end, where the checksum is
                pass
    except InputError:
        raise
    except (tarfile.TarError, *DAMAGED) as error:
        raise InputError(f"{source} is truncated, damaged or not a tar archive: {one_line(error)}") from error
    if missing := [path for path, name in wanted.items() if name not in members]:
        raise InputError(f"{source} is truncated or not {archive.name}: it has no {missing[0]}")
    return members


def _folder(archive: Archive, source: Path) -> dict[str, bytes]:
    try:
        return {name: (source / name).read_bytes() for name, _ in archive.members}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _samples(
    archive: Archive, source: Path, members: Mapping[str, bytes], wanted: tuple[tuple[str, str], ...], num_classes: int
) -> tuple[Tensor, Tensor]:
    images, targets = [], []
    for name, _ in wanted:
        where = f"{source}: {name!r}"
        content = _content(where, members[name])
        data, labels = content.get("data"), content.get(archive.keys[0])
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise InputError(f"{where} must have 'data' of type uint8 and shape (N, 3072), not {_shape(data)}")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise InputError(f"{where} must have {len(data)} {archive.keys[0]!r}, one per image, not {_shape(labels)}")
        for row, label in enumerate(labels):
            if not isinstance(label, int) or not 0 <= label < num_classes:
                known = f"the {num_classes} classes are 0 to {num_classes - 1}"
                raise InputError(f"{where} row {row} has label {label!r}, but {known}")
        images.append(data.reshape(-1, 3, 32, 32))
        targets.append(np.asarray(labels, dtype=np.int64))
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(targets))


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that accepts plain containers, numbers, text and NumPy arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InputError(f"refers to {module}.{name}, which is not allowed in a file of images")
        return ALLOWED[module, name]


def _content(where: str, data: bytes) -> dict[str, Any]:
    """The dictionary of a member; the official files were written by Python 2, so their keys are bytes."""
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise InputError(f"{where} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} must have a dictionary, not {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _shape(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return str(len(value)) if isinstance(value, list) else type(value).__name__
