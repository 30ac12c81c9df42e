"""Folders of Parquet files, as Spark and others write them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from tgeokd.utils.errors import InputError
from tgeokd.utils.integrity import sha256
from tgeokd.utils.parquet import read_parquet


def read_parts(folder: Path, source: str) -> tuple[pl.DataFrame, str]:
    """The rows of all parts in the order of their paths, and one SHA-256 of names and contents.

    Parts are files ``*.parquet``, or ``part-*`` without a suffix, in the folder and its folders. Folders ``column=value`` add
    a column of text. What starts with ``_`` or ``.`` is no part (``_SUCCESS``, checksums).
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = {path: path.relative_to(folder).parts for path in paths}
    if any("_temporary" in names for names in inside.values()) or (folder / "_temporary").exists():
        raise InputError(f"{source} has a folder _temporary: the job that writes it is not finished")
    paths = [path for path in paths if not any(name.startswith(("_", ".")) for name in inside[path])]
    parts = [p for p in paths if p.suffix == ".parquet" or (p.name.startswith("part-") and not p.suffix)]
    if others := [path for path in paths if path not in parts]:
        name = others[0].relative_to(folder)
        raise InputError(f"the folder {source} has {name}, which is no part of a Parquet table")
    if not parts:
        raise InputError(f"the folder {source} has no Parquet file (*.parquet or part-*)")
    keys = {path: tuple(name.partition("=")[0] for name in inside[path][:-1] if "=" in name) for path in parts}
    if unlike := [path for path in parts if keys[path] != keys[parts[0]]]:
        name = unlike[0].relative_to(folder)
        raise InputError(f"{source}: {name} is not below the same column=value folders as other parts")
    hive = dict.fromkeys(keys[parts[0]], pl.String)
    hive_options = {"hive_partitioning": bool(hive), "hive_schema": hive or None, "try_parse_hive_dates": False}
    frame = read_parquet(parts, f"the table of the parts of {source}", glob=False, **hive_options)
    digest = hashlib.sha256()
    for path in parts:
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return frame, digest.hexdigest()
