"""`cifar100` and `cifar10`: 60,000 colour images of 32x32 pixels from the official archives, with optional label noise."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.noise import (
    confusion_counts,
    confusion_noise,
    read_confusion_counts,
    read_human_labels,
    symmetric_noise,
)
from tgeokd.data.split import Rows, stratified_split
from tgeokd.data.tasks.cifar_archive import Archive, Checksum, Contents, find_archive, read_archive
from tgeokd.data.tasks.cifar_parquet import FOLDER, LABELS, find_parquet, read_parquet_images, read_parquet_labels
from tgeokd.data.tasks.registry import TASKS, find_path, provides, same_options
from tgeokd.utils.errors import InputError, missing_package, one_line

Noise = Literal["none", "symmetric", "human", "cifar_n"]
CifarLabels = Literal["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]
Relabel = Callable[
    [Tensor, int], tuple[Tensor, Tensor]
]  # row numbers and a seed to labels and a mask of the wrong ones


@dataclass(frozen=True)
class Spec:
    """A data set of the CIFAR family."""

    archive: Archive
    mean: tuple[float, float, float]  # of the training images per channel, of values in [0, 1]
    std: tuple[float, float, float]
    noisy_key: str  # of people's labels in :attr:`human_file`
    level: str = ""  # in the names of CIFAR-N: ``coarse_`` for superclasses

    @property
    def human_file(self) -> str:
        """Its file of the CIFAR-N release."""
        return f"{self.archive.name}_human.pt"

    @property
    def counts_file(self) -> str:
        """Counts of how people confuse its classes; used instead of :attr:`human_file` if it exists."""
        return f"{self.archive.name.lower().replace('-', '')}n_{self.level}confusion_counts.csv"

    @property
    def clean_key(self) -> str:
        """Key of the true labels in :attr:`human_file`."""
        return f"clean_{self.level}label"


CIFAR100 = Spec(
    Archive(
        name="CIFAR-100",
        folder="cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        keys=("fine_labels", "fine_label_names"),
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    noisy_key="noisy_label",
)
_COARSE = dataclasses.replace(CIFAR100.archive, keys=("coarse_labels", "coarse_label_names"))
CIFAR100_COARSE = dataclasses.replace(CIFAR100, archive=_COARSE, level="coarse_", noisy_key="noisy_coarse_label")
CIFAR10 = Spec(
    Archive(
        name="CIFAR-10",
        folder="cifar-10-batches-py",
        keys=("labels", "label_names"),
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    noisy_key="worse_label",
)


def _task(
    spec: Spec,
    *,
    data_dir: Path,
    seed: int = 0,
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
    if not 0 <= noise_rate <= 1:
        raise InputError(f"noise_rate must lie in [0, 1], not {noise_rate}")
    if noise_rate and noise != "symmetric":
        raise InputError(f"noise_rate={noise_rate} needs noise=symmetric, not noise={noise}")
    source, contents = _contents(spec, data_dir, checksum, download)
    names, classes = contents.class_names, len(contents.class_names)
    everything, everything_test = contents.target.numpy(), contents.test_target.numpy()
    rest, held, _ = stratified_split(everything, held_out=held_out, test=None, seed=seed, class_names=names)
    fit = _subset("train", everything, rest, train, classes, seed)
    tested = _subset("test", everything_test, np.arange(len(everything_test)), test, classes, seed=0)

    relabel = _relabel(spec, contents, source, data_dir, noise, noise_rate)
    fit_rows, held_rows, test_rows = (torch.from_numpy(rows) for rows in (fit, held, tested))
    labels, corrupted = relabel(fit_rows, seed)
    held_seed = seed + 2**31  # larger than any seed of a training set
    held_labels = relabel(held_rows, held_seed)[0] if held_out_noise else contents.target[held_rows]

    plain = EvalTransform(spec.mean, spec.std)
    random = TrainTransform(spec.mean, spec.std, padding=size // 8, seed=seed) if augment else plain
    fit_images, held_images = (_at_size(contents.images, rows, size) for rows in (fit_rows, held_rows))
    test_images, test_labels = _at_size(contents.test_images, test_rows, size), contents.test_target[test_rows]
    train_set = ArrayDataset(fit_images, labels, fit_rows, random)
    held_out_set = ArrayDataset(held_images, held_labels, held_rows, plain)
    test_set = ArrayDataset(test_images, test_labels, test_rows + len(everything), plain)
    inputs = InputSpec("array", (3, size, size), normalisation=(spec.mean, spec.std))
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
    return TaskData(train_set, held_out_set, test_set, classes, inputs, corrupted, names, notes=notes)


def _spec(task: str, options: Mapping[str, Any]) -> Spec:
    """The data set and the labels that a task's options select."""
    if task == "cifar10":
        return dataclasses.replace(CIFAR10, noisy_key=options.get("cifar_n_labels", CIFAR10.noisy_key))
    return CIFAR100 if options.get("labels", "fine") == "fine" else CIFAR100_COARSE


def _confusion(task: str, options: Mapping[str, Any], data_dir: Path, num_classes: int) -> Tensor | None:
    """How people confuse the classes, int64, shape (C, C); None where ``data_dir`` has neither counts nor labels."""
    spec = _spec(task, options)
    known = find_path(data_dir, ["cifar-n"], [spec.counts_file, spec.human_file])
    return _human_counts(spec, data_dir, num_classes) if known else None


@TASKS.register("cifar100")
@provides(confusion=partial(_confusion, "cifar100"))
@same_options(_task)
def cifar100(*, data_dir: Path, labels: Literal["fine", "coarse"] = "fine", **options: Any) -> TaskData:
    """CIFAR-100: 50,000 training and 10,000 test images of 100 classes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.

    Inputs are float32 of shape (N, 3, size, size), normalised with the mean and the standard deviation of the training set per
    channel. An id is the row number in the training file; test rows follow the training rows.

    Args:
        data_dir: contains ``cifar-100-python.tar.gz`` or the folder ``cifar-100-python``; CIFAR-N's labels here or in
            ``cifar-n``.
        labels: the 100 classes, or the 20 superclasses, which small machines can learn in minutes.
        **options: the following ones.
        seed: seed of the validation split, of the choice of ``train`` images and of the label noise.
        noise: label noise of the training set. ``symmetric``: a share is replaced by a class drawn from all classes.
            ``human``: drawn from how people confuse the classes, by class, not by image; not to be reported as CIFAR-100N.
            ``cifar_n``: CIFAR-100N itself, which needs the official order of the rows.
        noise_rate: the share that ``symmetric`` replaces, in [0, 1]; about 1 in C of these keep their class.
        held_out: size of the validation set, taken from the training set class by class. Test labels are always clean.
        held_out_noise: whether the validation labels have noise by the same rule, drawn independently.
        train: number of the other training images to use, class by class; null for all.
        test: number of test images to use, class by class, the same for every seed; null for all.
        size: image size; 16 averages blocks of 2x2 pixels, for small machines.
        augment: random shifts by up to an eighth of the size, and mirroring, of the training images.
        checksum: ``any`` accepts an archive of the same layout other than the official one; ``notes`` say so.
        download: download the official archive into ``data_dir`` if it is not there (with torchvision).
    """
    return _task(_spec("cifar100", {"labels": labels}), data_dir=data_dir, **options)


@TASKS.register("cifar10")
@provides(confusion=partial(_confusion, "cifar10"))
@same_options(_task)
def cifar10(*, data_dir: Path, cifar_n_labels: CifarLabels = "worse_label", **options: Any) -> TaskData:
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes.

    Args:
        data_dir: contains ``cifar-10-python.tar.gz`` or the folder ``cifar-10-batches-py``.
        cifar_n_labels: the label set of CIFAR-10N that ``noise=human`` and ``noise=cifar_n`` use.
        **options: those of :func:`cifar100` except ``labels``.
    """
    return _task(_spec("cifar10", {"cifar_n_labels": cifar_n_labels}), data_dir=data_dir, **options)


@TASKS.register("cifar10n")
@provides(confusion=partial(_confusion, "cifar10"))
@same_options(_task)
def cifar10n(
    *, data_dir: Path, cifar_n_labels: CifarLabels = "worse_label", noise: Noise = "cifar_n", **options: Any
) -> TaskData:
    """CIFAR-10N: CIFAR-10 with the labels of human annotators for training, and the true labels for validation and test.

    Source: Wei, Zhu, Cheng, Liu, Niu and Liu, "Learning with Noisy Labels Revisited: A Study Using Real-World Human
    Annotations", ICLR 2022. Of the labels, 9 % (``aggre_label``), 17 to 18 % (``random_label1`` to ``random_label3``) or 40 %
    (``worse_label``) are wrong.

    Args:
        data_dir: the archive of :func:`cifar10` and ``CIFAR-10_human.pt``; or, with ``checksum=any``, the folder ``cifar-10``
            with ``train.parquet``, ``test.parquet`` (columns ``image_jpeg``, ``label``) and ``cifar10n_labels.parquet``.
        cifar_n_labels: which annotators' labels.
        noise: ``none`` trains on the true labels.
        **options: those of :func:`cifar100` except ``labels``.
    """
    return _task(_spec("cifar10", {"cifar_n_labels": cifar_n_labels}), data_dir=data_dir, noise=noise, **options)


def _contents(spec: Spec, data_dir: Path, checksum: Checksum, download: bool) -> tuple[Path, Contents]:
    """The file or folder of the images, and its contents."""
    if checksum == "any" and spec.archive.name == "CIFAR-10" and find_archive(spec.archive, data_dir) is None:
        folder = find_parquet(data_dir)
        if folder is not None:
            return folder, read_parquet_images(folder)
    source = _source(spec.archive, data_dir, download)
    return source, read_archive(spec.archive, source, checksum)


def _source(archive: Archive, data_dir: Path, download: bool) -> Path:
    """The archive or its folder, downloaded if ``download`` is set and neither exists."""
    found = find_archive(archive, data_dir)
    if found is None and download:
        try:
            from torchvision import datasets  # type: ignore[import-untyped]  # an extra of the package
        except ImportError as error:
            raise missing_package("download=true", error) from error
        try:
            {"CIFAR-100": datasets.CIFAR100, "CIFAR-10": datasets.CIFAR10}[archive.name](str(data_dir), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"cannot download {archive.name} into {data_dir}: {one_line(error)}") from error
        found = find_archive(archive, data_dir)
    if found is None:
        names = f"{archive.file}, {archive.folder}/{archive.file} and {archive.folder}/{archive.train[0][0]}"
        advice = "download=true downloads it"
        if archive.name == "CIFAR-10" and find_parquet(data_dir) is not None:
            advice = f"checksum=any reads the compressed images of {FOLDER}/train.parquet instead"
        raise InputError(f"no {archive.name} in {data_dir}: looked for {names} ({advice})")
    return found


def _subset(name: str, target: Rows, rows: Rows, size: int | None, classes: int, seed: int) -> Rows:
    """``size`` of the rows, class by class; all of them for None."""
    if size is None or size == len(rows):
        return rows
    n = len(rows)
    if not classes <= size <= n - classes:
        sizes = f"[{classes}, {n - classes}], or be {n} for all"
        raise InputError(f"{name}={size} must lie in {sizes}, to have every class")
    _, chosen, _ = stratified_split(target[rows], held_out=size, test=None, seed=seed)
    return rows[chosen]


def _relabel(spec: Spec, contents: Contents, source: Path, data_dir: Path, noise: Noise, rate: float) -> Relabel:
    clean, classes = contents.target, len(contents.class_names)
    if noise == "symmetric":
        return lambda rows, seed: symmetric_noise(clean[rows], rate, classes, seed)
    if noise == "human":
        counts = _human_counts(spec, data_dir, classes)
        return lambda rows, seed: confusion_noise(clean[rows], counts, seed)
    labels = _cifar_n(spec, contents, source, data_dir) if noise == "cifar_n" else clean
    return lambda rows, seed: (labels[rows], labels[rows] != clean[rows])


def _human_counts(spec: Spec, data_dir: Path, classes: int) -> Tensor:
    """How people confuse the classes, from a table of counts or from CIFAR-N's labels, int64, shape (C, C)."""
    if table := find_path(data_dir, ["cifar-n"], [spec.counts_file]):
        return read_confusion_counts(table, classes)
    path, clean, noisy = _human_labels(spec, data_dir, "human", classes)
    counts = confusion_counts(clean, noisy, classes)
    absent = ~counts.any(dim=1)
    if absent.any():
        raise InputError(f"{path} has no image of class {int(absent.int().argmax())}")
    return counts


def _cifar_n(spec: Spec, contents: Contents, source: Path, data_dir: Path) -> Tensor:
    """CIFAR-N's labels of the training rows, which are in the official order."""
    unmatched = f"so {spec.archive.name}N's labels cannot be matched to images"
    for name, _ in spec.archive.train:
        if name in contents.unofficial:
            found = f"the order of the rows of {name!r} is not the official one (md5 {contents.md5[name]} instead of"
            advice = "noise=human draws labels from how often people confuse the classes instead"
            raise InputError(f"{source}: {found} {contents.unofficial[name]}), {unmatched}; {advice}")
    path, clean, noisy = _human_labels(spec, data_dir, "cifar_n", len(contents.class_names))
    if len(clean) != len(contents.target):
        raise InputError(f"{path} has {len(clean)} labels for {len(contents.target)} training images")
    wrong = clean != contents.target
    if wrong.any():
        row = int(wrong.int().argmax())
        other = f"but the training set has {int(contents.target[row])} there, {unmatched}"
        raise InputError(f"{path}: {spec.clean_key} of row {row} is {int(clean[row])}, {other}")
    return noisy


def _human_labels(spec: Spec, data_dir: Path, noise: Noise, classes: int) -> tuple[Path, Tensor, Tensor]:
    """CIFAR-N's file, and its true and people's labels."""
    path = find_path(data_dir, ["cifar-n"], [spec.human_file])
    if path is None and (table := find_path(data_dir, [FOLDER], [LABELS])) and spec.archive.name == "CIFAR-10":
        return table, *read_parquet_labels(table, (spec.clean_key, spec.noisy_key))
    if path is None:
        wanted = f"{spec.counts_file} and {spec.human_file}" if noise == "human" else spec.human_file
        places = f"{data_dir / 'cifar-n'} and {data_dir}"
        raise InputError(f"noise={noise} needs CIFAR-N's files: looked for {wanted} in {places}")
    labels = read_human_labels(path, (spec.clean_key, spec.noisy_key), classes)
    return path, labels[spec.clean_key], labels[spec.noisy_key]


def _at_size(images: Tensor, rows: Tensor, size: int) -> Tensor:
    """The images of some rows; for half the size averaged over blocks of 2x2 pixels (rounded half up)."""
    chosen = images[rows]
    if size == chosen.shape[-1]:
        return chosen
    wide = chosen.short()
    total = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
    return ((total + 2) // 4).to(torch.uint8)
