"""`cifar100` and `cifar10`: 60,000 colour images of 32x32 pixels, from the official python archives; label noise by choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.data.noise import (
    confusion_counts,
    confusion_noise,
    read_confusion_counts,
    read_human_labels,
    symmetric_noise,
)
from tgeokd.data.split import stratified_split
from tgeokd.data.tasks.cifar_archive import Archive, Checksum, Contents, find_archive, read_archive
from tgeokd.utils.errors import InputError, one_line

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR100_COARSE",
    "CifarLabels",
    "Noise",
    "Spec",
    "beside",
    "cifar10",
    "cifar100",
    "human_counts",
    "which_labels",
]

Noise = Literal["none", "symmetric", "human", "cifar_n"]
CifarLabels = Literal["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]
Rows = NDArray[np.int64]
Relabel = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From row numbers of the training file and a seed to their labels and which of these are wrong."""


@dataclass(frozen=True)
class Spec:
    """A data set of the CIFAR family.

    Attributes:
        archive: its python archive.
        mean: of the training images by channel, of values in [0, 1].
        std: likewise.
        human_file: its file of the CIFAR-N release.
        counts_file: a table of how people confuse its classes, used in place of ``human_file`` where it is there.
        clean_key: of the true labels in ``human_file``.
    """

    archive: Archive
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    human_file: str
    counts_file: str
    clean_key: str = "clean_label"


CIFAR100 = Spec(
    Archive(
        name="CIFAR-100",
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    human_file="CIFAR-100_human.pt",
    counts_file="cifar100n_confusion_counts.csv",
)
CIFAR100_COARSE = dataclasses.replace(
    CIFAR100,
    archive=dataclasses.replace(CIFAR100.archive, label_key="coarse_labels", names_key="coarse_label_names"),
    counts_file="cifar100n_coarse_confusion_counts.csv",
    clean_key="clean_coarse_label",
)
CIFAR10 = Spec(
    Archive(
        name="CIFAR-10",
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        label_key="labels",
        names_key="label_names",
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    human_file="CIFAR-10_human.pt",
    counts_file="cifar10n_confusion_counts.csv",
)


def cifar100(
    *,
    data_dir: Path,
    seed: int = 0,
    labels: Literal["fine", "coarse"] = "fine",
    noise: Noise = "none",
    noise_rate: float = 0.0,
    held_out: int = 5000,
    held_out_noise: bool = False,
    train: int | None = None,
    test: int | None = None,
    size: Literal[32, 16] = 32,
    augment: bool = True,
    checksum: Checksum = "official",
    download: bool = False,
) -> TaskData:
    """CIFAR-100: 50,000 training and 10,000 test images of 100 classes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.

    Inputs are float32 of shape (N, 3, size, size), normalised with the training set's mean and deviation by channel. An id is
    the row in the training file; test rows are counted on after those.

    Args:
        data_dir: holds ``cifar-100-python.tar.gz`` or the folder ``cifar-100-python``; people's labels here or in ``cifar-n``.
        seed: of the held-out split, of the choice of ``train`` images and of the noise.
        labels: the 100 classes, or the 20 superclasses, which small machines can learn something of in minutes.
        noise: wrong labels in the training set. ``symmetric``: a share replaced by a class drawn from all classes.
            ``human``: drawn from how people confuse the classes, by class, not by image; not to be reported as CIFAR-100N.
            ``cifar_n``: CIFAR-100N itself, which needs the official order of the rows.
        noise_rate: the share that ``symmetric`` replaces, in [0, 1]; about 1 in C of these is drawn as it was.
        held_out: held-out images, taken from the training set class by class. The test labels are always clean.
        held_out_noise: whether the held-out labels are noisy by the same rule, drawn independently.
        train: how many of the other training images to use, class by class; null for all.
        test: how many test images to use, class by class, the same for every seed; null for all.
        size: of the images; 16 averages blocks of 2x2 pixels, for small machines.
        augment: random shifts by up to an eighth of the size, and mirroring, of the training images.
        checksum: ``any`` accepts another archive of the same layout than the official one; ``notes`` say so.
        download: get the official archive into ``data_dir`` where it is not there (with torchvision).

    Raises:
        InputError: with the file, and the row where there is one, for data that is missing, damaged or not what is expected.
    """
    return _task(
        *which_labels("cifar100", {"labels": labels}), data_dir=data_dir, seed=seed, noise=noise,
        noise_rate=noise_rate, held_out=held_out, held_out_noise=held_out_noise, train=train, test=test, size=size,
        augment=augment, checksum=checksum, download=download,
    )  # fmt: skip


def cifar10(
    *,
    data_dir: Path,
    seed: int = 0,
    noise: Noise = "none",
    noise_rate: float = 0.0,
    cifar_n_labels: CifarLabels = "worse_label",
    held_out: int = 5000,
    held_out_noise: bool = False,
    train: int | None = None,
    test: int | None = None,
    size: Literal[32, 16] = 32,
    augment: bool = True,
    checksum: Checksum = "official",
    download: bool = False,
) -> TaskData:
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes. All as in :func:`cifar100`, but for one option.

    Args:
        data_dir: holds ``cifar-10-python.tar.gz`` or the folder ``cifar-10-batches-py``.
        seed: as in :func:`cifar100`.
        noise: likewise.
        noise_rate: likewise.
        cifar_n_labels: which of the label sets of CIFAR-10N ``noise`` means with ``human`` and ``cifar_n``.
        held_out: as in :func:`cifar100`.
        held_out_noise: likewise.
        train: likewise.
        test: likewise.
        size: likewise.
        augment: likewise.
        checksum: likewise.
        download: likewise.

    Raises:
        InputError: as in :func:`cifar100`.
    """
    return _task(
        *which_labels("cifar10", {"cifar_n_labels": cifar_n_labels}), data_dir=data_dir, seed=seed, noise=noise,
        noise_rate=noise_rate, held_out=held_out, held_out_noise=held_out_noise, train=train, test=test, size=size,
        augment=augment, checksum=checksum, download=download,
    )  # fmt: skip


def which_labels(task: str, options: Mapping[str, Any]) -> tuple[Spec, str]:
    """The data set a task's options mean, and the name of people's labels in its CIFAR-N file."""
    if task == "cifar10":
        return CIFAR10, options.get("cifar_n_labels", "worse_label")
    fine = options.get("labels", "fine") == "fine"
    return (CIFAR100, "noisy_label") if fine else (CIFAR100_COARSE, "noisy_coarse_label")


def _task(
    spec: Spec,
    human_key: str,
    *,
    data_dir: Path,
    seed: int,
    noise: Noise,
    noise_rate: float,
    held_out: int,
    held_out_noise: bool,
    train: int | None,
    test: int | None,
    size: int,
    augment: bool,
    checksum: Checksum,
    download: bool,
) -> TaskData:
    if not 0 <= noise_rate <= 1:
        raise InputError(f"noise_rate must lie in [0, 1], not {noise_rate}")
    if noise_rate and noise != "symmetric":
        raise InputError(f"noise_rate={noise_rate} is of noise=symmetric; noise is {noise}")
    source = _source(spec, data_dir, download)
    contents = read_archive(spec.archive, source, checksum)
    classes = len(contents.class_names)
    everything = contents.target.numpy()
    rest, held, _ = stratified_split(
        everything, held_out=held_out, test=None, seed=seed, class_names=contents.class_names
    )
    fit = _subset("train", everything, rest, train, classes, seed)
    tested = _subset("test", contents.test_target.numpy(), np.arange(len(contents.test_target)), test, classes, seed=0)

    relabel = _relabel(spec, contents, source, data_dir, noise, noise_rate, human_key)
    fit_rows, held_rows, test_rows = (torch.from_numpy(rows) for rows in (fit, held, tested))
    labels, corrupted = relabel(fit_rows, seed)
    held_labels = contents.target[held_rows]
    if held_out_noise:
        held_labels, _ = relabel(held_rows, seed + 2**31)  # beyond every seed of a training set

    plain = EvalTransform(spec.mean, spec.std)
    random = TrainTransform(spec.mean, spec.std, padding=size // 8, seed=seed) if augment else plain
    images = _at_size(contents.images, fit_rows, size)
    notes: dict[str, Any] = {
        "file": contents.file,
        "official": not contents.unofficial,
        "sha256": contents.sha256,
        "md5": contents.md5,
        "noise": noise,
        "wrong_labels": float(corrupted.double().mean()),
        "held_out_wrong_labels": float((held_labels != contents.target[held_rows]).double().mean()),
        "rows": {"train": len(fit), "held_out": len(held), "test": len(tested)},
        "image_size": size,
        "classes": classes,
    }
    return TaskData(
        ArrayDataset(images, labels, fit_rows, random),
        ArrayDataset(_at_size(contents.images, held_rows, size), held_labels, held_rows, plain),
        ArrayDataset(
            _at_size(contents.test_images, test_rows, size),
            contents.test_target[test_rows],
            test_rows + len(everything),
            plain,
        ),
        classes,
        InputSpec("array", (3, size, size)),
        corrupted,
        contents.class_names,
        notes=notes,
    )


def _source(spec: Spec, data_dir: Path, download: bool) -> Path:
    """The archive or its folder, downloaded where that is asked for and needed."""
    archive = spec.archive
    found = find_archive(archive, data_dir)
    if found is None and download:
        try:
            from torchvision import datasets  # type: ignore[import-untyped]  # an extra of the package
        except ImportError as error:
            raise InputError("download needs torchvision: pip install 'tgeokd[vision]'") from error
        try:
            {"CIFAR-100": datasets.CIFAR100, "CIFAR-10": datasets.CIFAR10}[archive.name](str(data_dir), download=True)
        except (OSError, RuntimeError) as error:
            reason = one_line(error)
            raise InputError(f"cannot download {archive.name} into {data_dir}: {reason}") from error
        found = find_archive(archive, data_dir)
    if found is None:
        raise InputError(
            f"no {archive.name} in {data_dir}: looked for {archive.file}, {archive.folder}/{archive.file} and "
            f"{archive.folder}/{archive.train[0][0]} (download=true gets it)"
        )
    return found


def _subset(name: str, target: Rows, rows: Rows, size: int | None, classes: int, seed: int) -> Rows:
    """So many of the rows, class by class; all of them where ``size`` is None."""
    if size is None or size == len(rows):
        return rows
    if not classes <= size <= len(rows) - classes:
        raise InputError(
            f"{name}={size} must lie in [{classes}, {len(rows) - classes}], or be {len(rows)} for all, to hold every class"
        )
    _, chosen, _ = stratified_split(target[rows], held_out=size, test=None, seed=seed)
    return rows[chosen]


def _relabel(
    spec: Spec, contents: Contents, source: Path, data_dir: Path, noise: Noise, rate: float, human_key: str
) -> Relabel:
    clean, classes = contents.target, len(contents.class_names)
    if noise == "symmetric":
        return lambda rows, seed: symmetric_noise(clean[rows], rate, classes, seed)
    if noise == "human":
        counts = human_counts(spec, data_dir, human_key, classes)
        return lambda rows, seed: confusion_noise(clean[rows], counts, seed)
    labels = _cifar_n(spec, contents, source, data_dir, human_key) if noise == "cifar_n" else clean
    return lambda rows, seed: (labels[rows], labels[rows] != clean[rows])


def human_counts(spec: Spec, data_dir: Path, human_key: str, classes: int) -> Tensor:
    """How people confuse the classes, from a table of counts or from their labels, int64, shape (C, C).

    Raises:
        InputError: where neither file is in ``data_dir`` or its ``cifar-n``, or one holds something else.
    """
    table = beside(data_dir, spec.counts_file)
    if table is not None:
        return read_confusion_counts(table, classes)
    path = beside(data_dir, spec.human_file)
    if path is None:
        raise InputError(_lacking("human", data_dir, f"{spec.counts_file} and {spec.human_file}"))
    labels = read_human_labels(path, (spec.clean_key, human_key), classes)
    counts = confusion_counts(labels[spec.clean_key], labels[human_key], classes)
    if not counts.any(dim=1).all():
        raise InputError(f"{path} has no image of class {int((~counts.any(dim=1)).int().argmax())}")
    return counts


def _cifar_n(spec: Spec, contents: Contents, source: Path, data_dir: Path, human_key: str) -> Tensor:
    """People's own labels of the training rows, which only the official order of the rows goes with."""
    for name, _ in spec.archive.train:
        if name in contents.unofficial:
            raise InputError(
                f"{source}: the order of the rows of {name!r} is not the official one (md5 {contents.md5[name]} instead of "
                f"{contents.unofficial[name]}), so {spec.archive.name}N's labels cannot be matched to images; noise=human "
                "draws from how often people confuse the classes instead"
            )
    path = beside(data_dir, spec.human_file)
    if path is None:
        raise InputError(_lacking("cifar_n", data_dir, spec.human_file))
    labels = read_human_labels(path, (spec.clean_key, human_key), len(contents.class_names))
    clean = labels[spec.clean_key]
    if len(clean) != len(contents.target):
        raise InputError(f"{path} has {len(clean)} labels for {len(contents.target)} training images")
    wrong = clean != contents.target
    if wrong.any():
        row = int(wrong.int().argmax())
        raise InputError(
            f"{path}: {spec.clean_key} of row {row} is {int(clean[row])}, but the training set has "
            f"{int(contents.target[row])} there, so {spec.archive.name}N's labels cannot be matched to images"
        )
    return labels[human_key]


def beside(data_dir: Path, name: str) -> Path | None:
    """A file of people's labels, in ``cifar-n`` or directly in the data folder; None where it is in neither."""
    places = (data_dir / "cifar-n" / name, data_dir / name)
    return next((path for path in places if path.is_file()), None)


def _lacking(noise: str, data_dir: Path, names: str) -> str:
    return f"noise={noise} needs labels by people: looked for {names} in {data_dir / 'cifar-n'} and {data_dir}"


def _at_size(images: Tensor, rows: Tensor, size: int) -> Tensor:
    """The images of these rows, where needed averaged over blocks of 2x2 pixels (rounded half up)."""
    chosen = images[rows]
    if size == chosen.shape[-1]:
        return chosen
    wide = chosen.short()
    total = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
    return ((total + 2) // 4).to(torch.uint8)
