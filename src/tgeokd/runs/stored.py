"""Results that were computed before: the one place that decides whether a result can be reused."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.results import SCHEMA_VERSION
from tgeokd.utils.documents import read_json_object
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import write_json
from tgeokd.utils.integrity import sha256


def result_key(what: str, config: RunConfig, teacher: Path | None = None) -> str:
    """A digest of everything that a result depends on. It does not depend on where its data and its teacher cache are stored,
    nor on whether a bad teacher is refused, nor on when checkpoints are written.

    ``what`` is the sort of the result, for example ``"trial"``, and ``teacher`` the file of the teacher.
    """
    options = config.teacher_cache and dataclasses.replace(config.teacher_cache, folder=None)
    settings = replace(config, data_dir=None, teacher_cache=options).to_dict()
    for name in ("allow_bad_teacher", "checkpoint_minutes", "keep_checkpoints"):
        del settings[name]
    if config.on_divergence == "stop":
        del settings["on_divergence"]  # results of versions without this setting
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, what, settings], sort_keys=True, default=str).encode())
    if teacher is not None:
        digest.update(bytes.fromhex(sha256(teacher)))
    return digest.hexdigest()


def stored(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a JSON file, or None where there is none; refused where it was written under another key."""
    if not path.exists():
        return None
    content = read_json_object(path)
    if content.get("key") != key:
        raise InputError(f"{path} has other settings, another teacher or another version; choose another folder")
    return content


def computed(path: Path, key: str, compute: Callable[[], Any]) -> Any:
    """The plain data that an earlier call wrote to a JSON file under the same key, or computed now and written."""
    content = stored(path, key)
    if content is None:
        content = {"key": key, "result": compute()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    if "result" not in content:
        raise InputError(f"{path} holds no result; delete it")
    return content["result"]
