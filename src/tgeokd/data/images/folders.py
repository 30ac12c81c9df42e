"""Images in one folder per class: which files count, and in which order the classes are."""

import logging
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # type: ignore[import-untyped]

from tgeokd.data.images.reader import read_rgb
from tgeokd.utils.documents import parse_json
from tgeokd.utils.errors import InputError, one_line

logger = logging.getLogger(__name__)

Strings = NDArray[np.bytes_]
MACHINE_MADE = (
    "__MACOSX",
    "@eaDir",
    "Thumbs.db",
    "desktop.ini",
)  # of operating systems, like names that begin with a dot
SHOWN = 3  # names in a message
ORIENTATION = 0x0112  # EXIF tag


@dataclass
class ClassFolders:
    """The image files of a folder of class folders, class by class.

    Attributes:
        folder: what was read.
        names: of the classes, in the order of their indices.
        paths: bytes, shape (N,).
        target: class indices, int64, shape (N,).
        others: files that are no images by their names; hidden ones do not count.
        mapped: whether a class map gave the order.
    """

    folder: Path
    names: tuple[str, ...]
    paths: Strings
    target: NDArray[np.int64]
    others: list[str] = field(default_factory=list)
    mapped: bool = False

    def keep(self, wanted: NDArray[np.bool_]) -> "ClassFolders":
        """Some of the files, by a mask of shape (N,)."""
        return ClassFolders(
            self.folder, self.names, self.paths[wanted], self.target[wanted], self.others, self.mapped
        ).checked()

    def checked(self) -> "ClassFolders":
        """These folders; an InputError names a class without an image."""
        empty = np.flatnonzero(np.bincount(self.target, minlength=len(self.names)) == 0)
        if len(empty):
            raise InputError(f"{self.folder / self.names[empty[0]]} has no image ({', '.join(IMG_EXTENSIONS)})")
        return self


def class_folders(folder: Path, class_map: Path | None = None) -> ClassFolders:
    """Find the images in ``folder/CLASS/**``, files in the order of classes and paths.

    Hidden files and folders (names that begin with a dot, and those that operating systems make) are left out. Classes are in
    text order, or in that of a class map.

    Args:
        folder: has one folder per class.
        class_map: a ``.json`` file with a list of names or with ``{"name": index}``, or a text file with one name per line.

    Raises:
        InputError: for no class folders, a class without an image, and a class map that does not name exactly the class
            folders.
    """
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name))
    except OSError as error:
        raise InputError(f"no class folders in {folder}: {one_line(error)}") from error
    if not found:
        raise InputError(f"no class folders in {folder}")
    names = _mapped(found, class_map, folder) if class_map is not None else found
    others: list[str] = []

    def is_image(path: str) -> bool:
        parts = Path(path).relative_to(folder).parts
        if any(map(_is_hidden, parts)):
            return False
        if not path.lower().endswith(IMG_EXTENSIONS):
            others.append("/".join(parts))
            return False
        return True

    index = {name: i for i, name in enumerate(names)}
    samples = make_dataset(str(folder), index, is_valid_file=is_image, allow_empty=True)
    samples.sort(key=lambda sample: sample[1])  # stable: within a class in the order of paths
    paths = np.array([os.fsencode(path) for path, _ in samples])
    target = np.array([label for _, label in samples], dtype=np.int64)
    return ClassFolders(folder, tuple(names), paths, target, sorted(others), class_map is not None).checked()


def say_what_was_found(found: ClassFolders) -> None:
    """Log the order of the classes and the files that are left out."""
    order = "of the class map" if found.mapped else "of their text"
    shown = ", ".join(found.names[:10]) + (", ..." if len(found.names) > 10 else "")
    logger.info("%s: %d classes in the order %s: %s", found.folder, len(found.names), order, shown)
    natural = sorted(found.names, key=_natural)
    if not found.mapped and natural != list(found.names):
        place = next(i for i, pair in enumerate(zip(found.names, natural, strict=True)) if pair[0] != pair[1])
        logger.warning(
            "%s: class %d is %r, by numbers it would be %r. A teacher trained elsewhere may count classes by numbers: "
            "data.class_map=FILE sets the order",
            *(found.folder, place, found.names[place], natural[place]),
        )
    if found.others:
        shown = ", ".join(found.others[:SHOWN]) + (", ..." if len(found.others) > SHOWN else "")
        logger.warning("%s: %d files left out, no images by their names: %s", found.folder, len(found.others), shown)


def refuse_empty(found: ClassFolders) -> None:
    """Raise an InputError for files without content: damage that is seen before training without decoding anything."""
    empty = [path for path in map(os.fsdecode, found.paths) if not os.path.getsize(path)]
    if empty:
        raise InputError(f"{empty[0]} is an empty file ({len(empty)} such images); data.bad_files=skip leaves them out")


def unreadable(paths: Strings, threads: int = 8) -> dict[str, str]:
    """Decode every file: the message for each one that cannot be read, by path."""

    def check(path: str) -> str | None:
        try:
            read_rgb(path)
        except InputError as error:
            return str(error)
        return None

    names = [os.fsdecode(path) for path in paths]
    with ThreadPoolExecutor(threads) as pool:
        return {name: message for name, message in zip(names, pool.map(check, names), strict=True) if message}


def inspect_images(folder: Path, class_map: Path | None = None) -> dict[str, Any]:
    """What is in a folder of class folders; every file is decoded.

    Returns:
        Plain data: ``images`` by class in the order of class indices, ``class_order`` (``"text"`` or ``"class map"``),
        ``left_out`` (no images by their names), ``unreadable`` (path and message), ``modes`` (of Pillow) and ``sizes`` with
        their counts, and ``rotated``, the number of files with an orientation other than upright.
    """
    found = class_folders(folder, class_map)
    damaged = unreadable(found.paths)
    modes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    rotated = 0
    for path in map(os.fsdecode, found.paths):
        if path not in damaged:
            with Image.open(path) as image:
                modes[image.mode] += 1
                sizes[f"{image.width}x{image.height}"] += 1
                rotated += image.getexif().get(ORIENTATION, 1) != 1
    counts = np.bincount(found.target, minlength=len(found.names)).tolist()
    return {
        "folder": str(folder),
        "images": dict(zip(found.names, counts, strict=True)),
        "class_order": "class map" if found.mapped else "text",
        "left_out": found.others,
        "unreadable": damaged,
        "modes": dict(modes.most_common()),
        "sizes": dict(sizes.most_common()),
        "rotated": rotated,
    }


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in MACHINE_MADE


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts runs of digits by their value."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]


def _mapped(found: list[str], class_map: Path, folder: Path) -> list[str]:
    try:
        text = class_map.read_text()
        content = (
            parse_json(text, class_map)
            if class_map.suffix == ".json"
            else [n.strip() for n in text.splitlines() if n.strip()]
        )
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the class map {class_map}: {one_line(error)}") from error
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise InputError(f"{class_map} must give each class its own index from 0 to {len(content) - 1}")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise InputError(f'{class_map} must be a list of class names or {{"name": index}}')
    if len(set(content)) < len(content):
        twice = next(name for name in content if content.count(name) > 1)
        raise InputError(f"{class_map} names the class {twice!r} twice")
    for missing, here, there in (
        (sorted(set(found) - set(content)), folder, class_map),
        (sorted(set(content) - set(found)), class_map, folder),
    ):
        if missing:
            raise InputError(f"the class {missing[0]!r} is in {here} but not in {there} ({len(missing)} such classes)")
    return content
