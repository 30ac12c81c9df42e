"""What a table or a folder of images holds, before anything is trained on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgeokd.data import TASKS
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import call_validated


def inspect_data(path: Path, *, label: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts that a run on a table records in its ``results.json``, or those of a folder of images.

    Args:
        path: a table (a file, or a folder of Parquet files), or a folder with one folder of images per class.
        label: the label column of a table; None for images.
        options: of the task ``tabular``; of images ``class_map``.

    Returns:
        Plain data, see the notes of :func:`tgeokd.data.tasks.tabular.tabular` and
        :func:`tgeokd.data.images.folders.inspect_images`.

    Raises:
        InputError: for what a run would refuse too.
    """
    path, options = path.expanduser().resolve(), dict(options or {})
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if label is None:
        if not path.is_dir():
            raise InputError(f"{path} is a table: name its label column with --label")
        from tgeokd.data.images.folders import inspect_images

        unknown = set(options) - {"class_map"}
        if unknown:
            raise InputError(f"of a folder of images only class_map can be set, not {', '.join(sorted(unknown))}")
        class_map = options.get("class_map")
        return inspect_images(path, None if class_map is None else Path(class_map).expanduser())
    fixed = {"data_dir": path.parent, "file": path.name, "label": label}
    data = call_validated("task 'tabular'", TASKS["tabular"], options, **fixed)
    notes: dict[str, Any] = data.notes
    return notes
