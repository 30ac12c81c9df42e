"""Changed bytes and truncations of every kind of file that is read.

``python -m tools.torture.damage KIND SEED SECONDS`` tries one kind and prints its counts as JSON: a process of its own,
because a reader that is written in another language may end it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tgeokd.data.images.reader import read_rgb
from tgeokd.data.tables.reader import read_table
from tgeokd.data.tasks.cifar import CIFAR10 as CIFAR
from tgeokd.data.tasks.cifar_archive import read_archive
from tgeokd.models.weights import load_weights
from tgeokd.runs.build import load_data
from tgeokd.runs.config import load_config, override, preset
from tgeokd.runs.predict import predict
from tgeokd.runs.results import RunResults
from tgeokd.runs.single import run as run_single
from tgeokd.runs.teacher import build_teacher
from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.cache.store import TeacherCache, TeacherCacheOptions, write_cache
from tgeokd.teachers.formats import read_predictions, write_predictions
from tgeokd.training.checkpoint import Checkpointer, write_weights
from tgeokd.utils.errors import InputError
from tgeokd.utils.integrity import write_with_checksum
from tgeokd.utils.run_folder import RunFolder
from tools.torture.interruptions import Undisturbed, folder
from tools.torture.report import Row
from tools.torture.trainings import FIT

CIFAR10 = CIFAR.archive
FLIPS, CUTS = 300, 50
HARMLESS = ("refused", "the same", "read as something else, which its format cannot notice")
ROWS = 400


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes one in an empty folder and returns its path.
        read: what a reader makes of it; an InputError where it refuses it.
        checked: whether the file has a checksum (its own, or beside it), so that every change must be noticed.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool = True


def damage(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """300 changed bytes and 50 truncations of every kind, or as many as the time allows."""
    counts = Counter[str]()
    counts["possible"] = len(KINDS) * (FLIPS + CUTS)
    for name in KINDS:
        command = [sys.executable, "-m", "tools.torture.damage", name, str(seed), str(seconds / len(KINDS))]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            last = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
            counts[f"{name}: the process ended with {ended.returncode}: {last[:160]}"] += 1
            continue
        found = Counter(json.loads(ended.stdout.splitlines()[-1]))
        counts.update(
            {key if key == "done" else f"{name}: {key}": n for key, n in found.items() if key not in HARMLESS}
        )
        print(f"{name}: {dict(found)}", file=sys.stderr, flush=True)
    return Row("a changed byte or a truncation of every kind of file: refused in one line, or without effect", counts)


def try_kind(kind: Kind, seed: int, seconds: float) -> Counter[str]:
    """Damage a file of a kind in many ways, and count what its reader does."""
    rng, counts, until = random.Random(seed), Counter[str](), time.monotonic() + seconds
    with folder() as place:
        path = kind.make(place)
        good, expected = path.read_bytes(), _digest(kind.read(path))
        flips = [True] * FLIPS + [False] * CUTS
        rng.shuffle(flips)
        for flip in flips:
            if time.monotonic() > until:
                break
            content = bytearray(good)
            if flip:
                content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            else:
                content = content[: rng.randrange(len(content))]
            path.write_bytes(content)
            counts["done"] += 1
            counts[_outcome(kind, path, expected)] += 1
    return counts


def _outcome(kind: Kind, path: Path, expected: str) -> str:
    try:
        found = _digest(kind.read(path))
    except InputError as error:
        return "refused" if "\n" not in str(error) else "more than one line"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:160]
    if found == expected:
        return "the same"
    return "silently something else" if kind.checked else HARMLESS[2]


def _digest(value: Any) -> str:
    """Of what was read, by content."""

    def plain(item: Any) -> Any:
        if isinstance(item, Tensor):
            return (str(item.dtype), tuple(item.shape), item.reshape(-1).view(torch.uint8).numpy().tobytes())
        if isinstance(item, np.ndarray):
            return (str(item.dtype), item.shape, item.tobytes() if item.dtype != object else item.tolist())
        if isinstance(item, dict):
            return [(key, plain(each)) for key, each in item.items()]
        if isinstance(item, list | tuple):
            return [plain(each) for each in item]
        return repr(item)

    return hashlib.sha256(pickle.dumps(plain(value))).hexdigest()


# ---- the files


def network() -> nn.Module:
    """A small one, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _checkpoint(place: Path) -> Path:
    FIT.go(place)
    checkpoints = place / "run" / "checkpoints"
    newest = max(checkpoints.glob("step-*.pt"))
    for other in checkpoints.glob("*.pt"):
        if other != newest:
            other.unlink()
    return newest


def _read_checkpoint(path: Path) -> Any:
    return Checkpointer(path.parents[1]).load().to_dict()


def _weights(place: Path) -> Path:
    write_weights(place / "teacher.safetensors", network(), ["a", "b", "c"])
    return place / "teacher.safetensors"


def _plain_weights(place: Path) -> Path:
    torch.save(network().state_dict(), place / "teacher.pt")
    return place / "teacher.pt"


def _read_weights(path: Path) -> Any:
    model = network()
    load_weights(model, path)
    return dict(model.state_dict())


def _cache(place: Path) -> Path:
    ids, logits = torch.arange(200), torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    key = dict.fromkeys(("teacher", "precision", "preprocessing", "augmentation", "samples"), "x")
    write_cache(place / "cache", [(0, ids, logits)], Samples(ids, ids * 7, None), key, 5, 1, TeacherCacheOptions())
    return next((place / "cache").glob("logits.*"))


def _cache_description(place: Path) -> Path:
    return _cache(place).with_name("cache.json")


def _read_cache(path: Path) -> Any:
    cache = TeacherCache(path.parent)
    return cache.lookup(cache.ids), cache.ids, cache.key


def _predictions(suffix: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        ids, logits = torch.arange(200), torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        write_predictions(place / f"p{suffix}", ids, logits, class_names=list("abcde"))
        return place / f"p{suffix}"

    return make


def _read_predictions(path: Path) -> Any:
    return vars(read_predictions(path))


def _archive(place: Path) -> Path:
    rng, path = np.random.default_rng(0), place / CIFAR10.file
    with tarfile.open(path, "w:gz") as tar:
        for name, _ in CIFAR10.members:
            content: dict[bytes, Any] = {b"label_names": [b"a", b"b"]}
            if name != CIFAR10.meta[0]:
                images = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
                content = {b"data": images, b"labels": [0, 1] * 3}
            add_member(tar, f"{CIFAR10.folder}/{name}", pickle.dumps(content, protocol=2))
    return path


def add_member(tar: tarfile.TarFile, name: str, content: bytes = b"", **more: Any) -> None:
    """Add a member with any further attributes to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in more.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(content))


def _read_archive(path: Path) -> Any:
    found = read_archive(CIFAR10, path, "any")
    return found.images, found.target, found.test_images, found.test_target, found.class_names


def _rows(place: Path) -> Path:
    rng = random.Random(0)
    with (place / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "color", "label"])
        for _ in range(ROWS):
            x, color = rng.gauss(0, 1), rng.choice(["red", "green", "blue"])
            writer.writerow([f"{x:.6f}", color, "yes" if x + (color == "red") > 0.3 else "no"])
    return place / "rows.csv"


def _gzipped(place: Path) -> Path:
    path = place / "rows.csv.gz"
    path.write_bytes(gzip.compress(_rows(place).read_bytes()))
    return path


def _parquet(place: Path) -> Path:
    import polars

    polars.read_csv(_rows(place)).write_parquet(place / "rows.parquet")
    return place / "rows.parquet"


def _parquet_with_checksum(place: Path) -> Path:
    path = _parquet(place)
    content = path.read_bytes()
    write_with_checksum(path, lambda temporary: temporary.write_bytes(content))
    return path


def _read_rows(path: Path) -> Any:
    frame = read_table(path).frame
    return frame.columns, [str(each) for each in frame.dtypes], frame.rows()


def _image(suffix: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"image{suffix}")
        return place / f"image{suffix}"

    return make


def _read_image(path: Path) -> Any:
    return np.asarray(read_rgb(path))


def _of_a_run(name: str) -> Callable[[Path], Path]:
    """A file in the folder of a finished run on a table."""

    def make(place: Path) -> Path:
        _rows(place)
        short = ["teacher.epochs=1", "teacher.patience=null", "student.epochs=1", "method=kd", "options={}"]
        data = ["data.file=rows.csv", "data.label=label", f"data_dir={place}"]
        config, run = override(preset("tabular"), [*short, *data]), place / "run"
        RunFolder(run).write_yaml("config.yaml", config.to_dict())
        build_teacher(config, load_data(config), run / "teacher.safetensors")
        run_single(config, run / "teacher.safetensors", run)
        return run / name

    return make


def _predict(path: Path) -> Any:
    out = path.parent / "predictions.csv"
    predict(path.parent, path.parent.parent / "rows.csv", out)
    return out.read_bytes()


def _results(path: Path) -> Any:
    return RunResults.read(path).to_dict()


def _config(path: Path) -> Any:
    return load_config(path).to_dict()


KINDS: dict[str, Kind] = {
    "checkpoint": Kind(_checkpoint, _read_checkpoint),
    "weights, safetensors": Kind(_weights, _read_weights),
    "student of a run": Kind(_of_a_run("student.safetensors"), _predict),
    "encoder of a run": Kind(_of_a_run("encoder.json"), _predict),
    "results of a run": Kind(_of_a_run("results.json"), _results),
    "teacher cache, logits": Kind(_cache, _read_cache),
    "teacher cache, description": Kind(_cache_description, _read_cache),
    "predictions, safetensors": Kind(_predictions(".safetensors"), _read_predictions),
    "predictions, parquet": Kind(_predictions(".parquet"), _read_predictions),
    "predictions, npz": Kind(_predictions(".npz"), _read_predictions),
    "CIFAR archive, checksum=any": Kind(_archive, _read_archive),
    "csv.gz": Kind(_gzipped, _read_rows),
    "parquet with a checksum": Kind(_parquet_with_checksum, _read_rows),
    "image, png": Kind(_image(".png"), _read_image),
    # a changed digit is another file, which nothing can notice
    "weights, own .pt": Kind(_plain_weights, _read_weights, checked=False),
    "csv": Kind(_rows, _read_rows, checked=False),
    "parquet": Kind(_parquet, _read_rows, checked=False),
    "configuration": Kind(_of_a_run("config.yaml"), _config, checked=False),
    "image, jpeg": Kind(_image(".jpg"), _read_image, checked=False),
}


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(json.dumps(try_kind(KINDS[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3]))))
