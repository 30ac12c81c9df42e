"""CIFAR-10 as two parquet files of compressed images, the form in which repositories that cannot hold the archive share it."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tgeokd.data.tasks.cifar_archive import Contents
from tgeokd.utils.errors import InputError, one_line, optional_import
from tgeokd.utils.integrity import sha256
from tgeokd.utils.parquet import read_parquet

FOLDER = "cifar-10"
LABELS = (
    "cifar10n_labels.parquet"  # beside the images: ``clean_label`` and people's labels, in the order of train.parquet
)
SIZE = (32, 32)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def find_parquet(data_dir: Path) -> Path | None:
    """The folder with ``train.parquet`` and ``test.parquet``; None where there is none."""
    folder = data_dir / FOLDER
    return folder if all((folder / f"{split}.parquet").is_file() for split in ("train", "test")) else None


def read_parquet_images(folder: Path) -> Contents:
    """The images and labels of ``train.parquet`` and ``test.parquet``: columns ``image_jpeg`` (bytes) and ``label``."""
    return _read(folder, tuple((folder / f"{split}.parquet").stat().st_mtime_ns for split in ("train", "test")))


@lru_cache(maxsize=1)
def _read(folder: Path, stamps: tuple[int, ...]) -> Contents:
    (images, target), (test_images, test_target) = (_split(folder / f"{name}.parquet") for name in ("train", "test"))
    changed = "the images are compressed with losses"
    return Contents(
        *(images, target, test_images, test_target, CLASSES, folder.name),
        sha256(folder / "train.parquet"),
        md5={},
        unofficial={"train.parquet": changed, "test.parquet": changed},
    )


def _split(path: Path) -> tuple[Tensor, Tensor]:
    image = optional_import("PIL.Image", f"reading {path.name}")
    frame = read_parquet(path, path, columns=["image_jpeg", "label"])
    try:
        opened = (image.open(io.BytesIO(data)) for data in frame["image_jpeg"])
        pixels = [
            np.asarray(each.convert("RGB")) if each.size == SIZE else np.empty((*each.size, 3)) for each in opened
        ]
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise InputError(f"{path} is damaged or has other contents than images: {one_line(error)}") from error
    wrong = next((row for row, array in enumerate(pixels) if array.shape != (32, 32, 3)), None)
    if wrong is not None or not pixels:
        found = "no image" if wrong is None else f"an image of shape {pixels[wrong].shape} in row {wrong}"
        raise InputError(f"{path} must have images of 32x32 pixels, and has {found}")
    target = torch.from_numpy(frame["label"].to_numpy().astype(np.int64))
    if int(target.min()) < 0 or int(target.max()) >= len(CLASSES):
        raise InputError(
            f"{path}: labels must lie in 0 to {len(CLASSES) - 1}, not {int(target.min())} to {int(target.max())}"
        )
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), target


def read_parquet_labels(path: Path, keys: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two label columns of a parquet file, class indices, int64, each of shape (N,)."""
    frame = read_parquet(path, path, columns=list(keys))
    first, second = (torch.from_numpy(frame[key].to_numpy().astype(np.int64)) for key in keys)
    return first, second
