"""Limits on what a small file may become in memory, for all formats; a user can raise each by an environment variable."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

from tgeokd.utils.errors import InputError, one_line

MIB = 1 << 20
PREFIX = "TGEOKD_MAX_"
# by how their files begin
OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)  # what the decompressors raise


@dataclass(frozen=True)
class Limits:
    """The limits in force.

    Attributes:
        expanded_mib: MiB that any file may become when it is decompressed.
        expanded_ratio: how many times its own size a larger one may become.
        document_kib: size of a YAML file.
        nesting: depth of a YAML file.
        nodes: entries of a YAML file with its aliases written out.
        megapixels: of an image.
    """

    expanded_mib: int = 256
    expanded_ratio: int = 100
    document_kib: int = 256
    nesting: int = 50
    nodes: int = 20_000
    megapixels: int = 64

    @classmethod
    def current(cls) -> Self:
        """The defaults, or where they are set ``TGEOKD_MAX_EXPANDED_MIB``, ``TGEOKD_MAX_NESTING``, ..."""
        found = {}
        for each in fields(cls):
            text = os.environ.get(PREFIX + each.name.upper())
            if text is not None:
                if not text.isdecimal():
                    raise InputError(f"{PREFIX}{each.name.upper()} must be a whole number, not {text!r}")
                found[each.name] = int(text)
        return cls(**found)

    def expanded(self, size: int) -> int:
        """Bytes that a file of a size may become."""
        return max(self.expanded_mib * MIB, self.expanded_ratio * size)


def check_expanded(path: Path, total: int, source: object) -> None:
    """Raise an InputError for a file that says that it becomes more bytes than it may."""
    limit = Limits.current().expanded(path.stat().st_size)
    if total > limit:
        what = f"becomes {total / MIB:,.0f} MiB when it is decompressed"
        raise too_large(source, what, f"{limit / MIB:,.0f} MiB", "expanded_mib")


def too_large(source: object, what: str, limit: str, name: str) -> InputError:
    """The error for something that is beyond a limit; ``name`` is the attribute of :class:`Limits`."""
    return InputError(f"{source} {what}, more than {limit}; if you trust it, set {PREFIX}{name.upper()} higher")


class Expanded(io.RawIOBase):
    """The bytes of a file that may be compressed with gzip, bzip2 or xz, up to the limit; checksums are compared at its end.

    Args:
        file: opened for reading bytes.
        size: of it, in bytes.
        source: its name in messages.
    """

    def __init__(self, file: IO[bytes], size: int, source: object) -> None:
        self._limit, self._source, self._count = Limits.current().expanded(size), source, 0
        start = file.read(max(map(len, OPENERS)))
        file.seek(0)
        opener = next((each for magic, each in OPENERS.items() if start.startswith(magic)), None)
        self._stream = file if opener is None else opener(file)

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; all that is left without it."""
        if size < 0:
            return b"".join(iter(lambda: self.read(MIB), b""))
        found = self._stream.read(min(size, 16 * MIB))
        self._count += len(found)
        if self._count > self._limit:
            limit = f"{self._limit / MIB:,.0f} MiB"
            raise too_large(self._source, "becomes larger when it is decompressed", limit, "expanded_mib")
        return found


def expand(content: bytes, source: str) -> bytes:
    """The bytes of a compressed file.

    Raises:
        InputError: for a file that is not complete, has another checksum, or is too large.
    """
    if not content.startswith(tuple(OPENERS)):
        raise InputError(f"{source} is not a gzip, bzip2 or xz file")
    try:
        return Expanded(io.BytesIO(content), len(content), source).read()
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{source} is not a complete gzip, bzip2 or xz file: {one_line(error)}") from error


def check_zip(path: Path) -> None:
    """Raise an InputError for a zip archive whose members are too large by what it declares; other files are left alone."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise InputError(f"{path} is a damaged archive: {one_line(error)}") from error
    check_expanded(path, total, path)
