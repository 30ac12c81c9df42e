"""Results that were computed before: the one place that decides whether a result can be reused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.results import SCHEMA_VERSION
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import write_json

__all__ = ["computed", "result_key", "stored"]


def result_key(what: str, config: RunConfig, teacher: Path | None = None) -> str:
    """A digest of everything that a result depends on.

    Args:
        what: the sort of the result, for example ``"trial"``.
        config: of the result; where its data and its teacher cache are stored does not matter.
        teacher: file of the teacher, if one is given.
    """
    options = config.teacher_cache and dataclasses.replace(config.teacher_cache, folder=None)
    settings = replace(config, data_dir=None, teacher_cache=options).to_dict()
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, what, settings], sort_keys=True, default=str).encode())
    if teacher is not None:
        with teacher.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def stored(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a JSON file that was written under the same key, or None where there is no file.

    Raises:
        InputError: where the file was written under another key.
    """
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("key") != key:
        raise InputError(f"{path} has other settings, another teacher or another version; choose another folder")
    return content


def computed(path: Path, key: str, compute: Callable[[], Any]) -> Any:
    """The result that an earlier call wrote to ``path`` under the same key, or the one that is computed now and written.

    Args:
        path: a JSON file.
        key: from :func:`result_key`.
        compute: returns plain data.

    Raises:
        InputError: where the file holds the result of another key.
    """
    content = stored(path, key)
    if content is None:
        content = {"key": key, "result": compute()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return content["result"]
