"""Time of a training epoch with stored teacher logits beside one that computes them in every step; with augmentation.

Run: python benchmarks/bench.py --only cached_epoch
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable

import torch
from harness import Figure, interleaved, ratios, seconds_of, threads
from torch.optim import SGD
from torch.utils.data import DataLoader

from tgeokd import Distiller
from tgeokd.data import InputSpec
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import TrainTransform
from tgeokd.data.loaders import BatchLoader
from tgeokd.models import build_model
from tgeokd.teachers import TeacherCacheOptions

SAMPLES = 640
BATCH = 64
CLASSES = 100
VIEWS = 4
STUDENT = "resnet20"
TEACHERS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56")
LIMIT = 0.75


def loader() -> DataLoader[object]:
    """Shuffled batches of 32x32 images, as in the CIFAR tasks."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
    transform = TrainTransform((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), padding=4)
    dataset = ArrayDataset(pixels, torch.randint(CLASSES, (SAMPLES,)), torch.arange(SAMPLES), transform)
    return BatchLoader(dataset, BATCH, shuffle=True)


def distiller(teacher: str, folder: str | None) -> Distiller:
    """Plain distillation from a network; with a folder, from its stored logits."""
    torch.manual_seed(1)
    models = [build_model(n, inputs=InputSpec("array", (3, 32, 32)), num_classes=CLASSES) for n in (teacher, STUDENT)]
    models = [model.to(memory_format=torch.channels_last) for model in models]
    optimizer = SGD(models[1].parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cache = TeacherCacheOptions(views=VIEWS, folder=folder) if folder is not None else False
    options = {"accelerator": "cpu", "progress": False, "allow_bad_teacher": True}  # it is random
    return Distiller(models[1], models[0], "kd", optimizer, cache_teacher=cache, **options)


def epoch(batches: DataLoader[object], teacher: str, folder: str | None = None) -> Callable[[], float]:
    """A measurement: seconds of one epoch of :meth:`Distiller.fit`."""

    def measure() -> float:
        seconds: float = distiller(teacher, folder).fit(batches, epochs=1)[0]["seconds"]
        return seconds

    return measure


def figures(runs: int) -> list[Figure]:
    """The ratio of the largest teacher has a limit; the others show for which teachers the cache saves time."""
    largest = TEACHERS[-1]
    with threads(2), tempfile.TemporaryDirectory() as folder:
        batches = loader()
        storing = seconds_of(lambda: distiller(largest, folder).store_teacher(batches, folder=folder, epochs=VIEWS))
        measures = {name: epoch(batches, name) for name in TEACHERS}
        values = interleaved({"cached": epoch(batches, largest, folder), **measures}, runs)
    median = {name: statistics.median(found) for name, found in values.items()}
    found = []
    for name in reversed(TEACHERS):
        saved = median[name] - median["cached"]
        absolute = f"{median['cached']:.2f} s / {median[name]:.2f} s per epoch of {SAMPLES} samples, batch {BATCH}"
        back = f"paid back after {storing / saved:.1f} epochs" if saved > 0 else "never paid back"
        cost = f"; storing {VIEWS} views took {storing:.1f} s, {back}"
        found.append(
            Figure.of(
                f"epoch with cached teacher / epoch with teacher computed ({_shown(name)} -> {_shown(STUDENT)}, augmented)",
                ratios(values, "cached", name),
                limit=LIMIT if name == largest else None,
                note=absolute + (cost if name == largest else ""),
            )
        )
    return found


def _shown(model: str) -> str:
    return model.replace("resnet", "ResNet-")
