"""The teacher of a run: trained here, read from a checkpoint, or predictions from a file."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.utilities import move_data_to_device
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from tgeokd.core.model_call import module_device
from tgeokd.data import TaskData
from tgeokd.data.batch import Batch
from tgeokd.data.datasets import with_transform_of
from tgeokd.methods import build_method
from tgeokd.runs.build import (
    build_distiller,
    build_student,
    build_teacher_network,
    fit,
    load_data,
    saving,
    teacher_seed,
    use_threads,
)
from tgeokd.runs.config import FeaturesConfig, RunConfig, replace
from tgeokd.runs.folds import WHOLE, out_of_fold
from tgeokd.teachers import CLASSIFIERS, StoredPredictions, TeacherCache, TeacherCacheOptions, fit_classifier
from tgeokd.teachers.checkpoint import load_teacher_weights
from tgeokd.training.checkpoint import write_weights
from tgeokd.training.distiller import Distiller
from tgeokd.training.parallel import ParallelContext
from tgeokd.training.teacher_check import TeacherCheck
from tgeokd.utils.errors import DivergenceError, InputError, one_line
from tgeokd.utils.integrity import verify_checksum
from tgeokd.utils.run_folder import scratch
from tgeokd.utils.validation import call_validated

_BATCH = 256

Evaluate = Callable[[Iterable[Any]], dict[str, float]]


def _kind(config: RunConfig) -> Literal["network", "network with stored predictions", "classifier", "predictions"]:
    recipe = config.teacher
    others = bool(recipe.data) or recipe.train == "head" or recipe.folds > 1
    if recipe.predictions is not None:
        return "predictions"
    name = recipe.model.get("name")
    if name not in CLASSIFIERS:
        return "network with stored predictions" if others else "network"
    if recipe.data or recipe.train == "head":
        raise InputError(f"teacher.data and teacher.train=head are for networks, and {name} is not a network")
    if recipe.weights is not None:
        raise InputError(f"teacher.weights takes the weights of a network, and {name} is not a network")
    return "classifier"


def is_network(config: RunConfig) -> bool:
    """Whether the teacher is a network that can predict any inputs of the student."""
    return _kind(config) == "network"


def _as_the_teacher_sees_it(config: RunConfig) -> RunConfig:
    """The config with the teacher's own data options, and with features and a linear teacher where only a head is trained."""
    recipe, data = config.teacher, config.data | config.teacher.data
    if recipe.train == "all":
        return replace(config, data=data)
    features = FeaturesConfig(model=recipe.model, weights=recipe.weights)
    linear = replace(recipe, model={"name": "mlp", "hidden": []}, weights=None, train="all")
    return replace(config, data=data, features=features, teacher=linear)


def check_teacher(config: RunConfig, data: TaskData) -> None:
    """Build as much of the teacher as is possible without training, so that wrong settings fail early."""
    if _kind(config) == "predictions":
        _read_predictions(config, data)
    elif _kind(config) == "classifier":
        options = dict(config.teacher.model)
        name = options.pop("name")
        fixed = {"inputs": data.inputs, "num_classes": data.num_classes, "seed": 0}
        call_validated(f"classifier {name!r}", CLASSIFIERS[name], options, **fixed)
    else:
        if not is_network(config):
            config = _as_the_teacher_sees_it(config)
            data = load_data(config)
        network = build_teacher_network(config, data)
        build_distiller(network, None, build_method("ce"), config, config.teacher, data, progress=False)
        if config.teacher.weights is not None:
            _load_weights(network, config, data)
        elif config.teacher.epochs == 0:
            _check_pretrained(network, config, data)


def _check_pretrained(network: nn.Module, config: RunConfig, data: TaskData) -> None:
    """Refuse an untrained network, and a pretrained one whose classifier would be random."""
    if config.teacher.model.get("pretrained") is not True:
        raise InputError(
            "the teacher is untrained: give teacher.epochs, teacher.weights, or a pretrained teacher.model"
        )
    classes = getattr(network, "pretrained_cfg", {}).get("num_classes", 1000)  # torchvision's all have ImageNet's 1000
    if classes != data.num_classes:
        raise InputError(
            f"the pretrained teacher has {classes} classes and the task {data.num_classes}: give teacher.epochs"
        )


def build_teacher(config: RunConfig, data: TaskData, path: Path, *, progress: bool = False) -> dict[str, float]:
    """Train or read the teacher, and save it: the weights of a network that sees the student's inputs, otherwise predictions.

    A network is trained on the training labels, its epoch chosen on the validation set where the recipe has a patience. Its
    checkpoints are in ``NAME.training`` beside ``path`` until it is saved: a training that was interrupted is continued by the
    next call.

    Returns:
        Metrics on the test set, unless a file of predictions lacks it, and on the validation set as ``val_...``.
    """
    use_threads(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_network(config):
        if _kind(config) == "predictions":
            stored = _read_predictions(config, data)
        elif _kind(config) == "classifier":
            stored = _trained_predictions(lambda part, _: _fit_classifier(config, part), config, data)
        else:
            own, work = _as_the_teacher_sees_it(config), _training_folder(path)

            def train(part: TaskData, name: str) -> nn.Module:
                return _train_network(own, part, work / name, progress).student

            stored = _trained_predictions(train, config, load_data(own))
        stored.save(path)
        forget_training(path)
        return _stored_metrics(stored, data)
    distiller = _train_network(config, data, _training_folder(path), progress)
    write_weights(path, distiller.student, data.class_names)
    forget_training(path)
    return both_metrics(distiller.evaluate, data)


def forget_training(path: Path) -> None:
    """Remove the checkpoints of the training of a teacher that was saved."""
    shutil.rmtree(_training_folder(path), ignore_errors=True)


def _training_folder(path: Path) -> Path:
    return path.with_suffix(".training")


def _train_network(config: RunConfig, data: TaskData, out: Path, progress: bool) -> Distiller:
    """A network with its weights read, or trained with checkpoints in a folder, and what evaluates it."""
    network = build_teacher_network(config, data)
    distiller = build_distiller(network, None, build_method("ce"), config, config.teacher, data, progress=progress)
    if config.teacher.weights is not None:
        _load_weights(network, config, data)
    elif config.teacher.epochs > 0:
        try:
            fit(distiller, config.teacher, data, seed=teacher_seed(config), **scratch(out), **saving(config))
        except DivergenceError as error:
            raise DivergenceError(f"the teacher's training: {error}") from error
    return distiller


def _load_weights(network: nn.Module, config: RunConfig, data: TaskData) -> None:
    assert config.teacher.weights is not None

    def examples() -> Any:
        batch = Batch.parse(next(iter(data.ordered_loader(data.held_out, 4))))
        return move_data_to_device(batch.inputs, module_device(network))

    load_teacher_weights(network, Path(config.teacher.weights), data.class_names, examples)


def load_teacher(config: RunConfig, data: TaskData, path: Path) -> nn.Module | StoredPredictions:
    """The teacher that :func:`build_teacher` saved."""
    if not is_network(config):
        return StoredPredictions.from_file(path, num_classes=data.num_classes, class_names=data.class_names)
    teacher = build_teacher_network(config, data)
    verify_checksum(path, "the teacher")
    try:
        load_model(teacher, str(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the teacher from {path}: {one_line(error)}") from error
    return teacher


def cache_teacher_logits(config: RunConfig, data: TaskData, path: Path, folder: Path) -> dict[str, TeacherCache]:
    """Compute and store the logits of a network for all samples that a student of this run may train on.

    Returns:
        Two caches in ``folder``: ``train`` has the training and the validation samples as they are trained on, in all views,
        ``held-out`` the validation samples without augmentation, for the outer problem. None where the teacher in ``path`` is
        not a network (its predictions are stored already).
    """
    use_threads(config)
    teacher = load_teacher(config, data, path)
    if isinstance(teacher, StoredPredictions):
        return {}
    config = replace(config, teacher_cache=config.teacher_cache or TeacherCacheOptions())
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, build_method("kd"), config, config.student, data, progress=False)
    train = data.training_loader(_BATCH, with_held_out=True)
    held_out = data.ordered_loader(data.held_out, _BATCH)
    distiller.store_teacher(train, held_out, folder=folder, epochs=config.student.epochs)
    return {part: TeacherCache(folder / part) for part in ("train", "held-out")}


def _fit_classifier(config: RunConfig, data: TaskData) -> Any:
    options = dict(config.teacher.model)
    return fit_classifier(options.pop("name"), options, data, seed=teacher_seed(config))


def _trained_predictions(train: Callable[[TaskData, str], Any], config: RunConfig, data: TaskData) -> StoredPredictions:
    """Predictions for all samples by a teacher that is trained here; out of fold where the recipe says so."""
    if config.teacher.folds > 1:
        return out_of_fold(train, data, config.teacher.folds, seed=teacher_seed(config))
    return _predict_all(train(data, WHOLE), data)


def _predict_all(teacher: Any, data: TaskData) -> StoredPredictions:
    """A teacher's predictions for all samples, of images without augmentation."""
    train = with_transform_of(data.train, data.held_out)
    return StoredPredictions.from_teacher(teacher, *map(data.ordered_loader, (train, data.held_out, data.test)))


def _read_predictions(config: RunConfig, data: TaskData) -> StoredPredictions:
    """The predictions of a file, which must have the training and validation samples, compared with these."""
    assert config.teacher.predictions is not None
    path, names = Path(config.teacher.predictions), data.class_names
    stored = StoredPredictions.from_file(path, num_classes=data.num_classes, class_names=names)
    check, ids = TeacherCheck(stored, data.num_classes), []
    for name, part in (("training", data.train), ("validation", data.held_out)):
        for batch in map(Batch.parse, data.ordered_loader(part)):
            if batch.ids is None:
                raise InputError(f"teacher.predictions needs sample ids, and task {config.task!r} has none")
            check.add(name, batch, stored.lookup(batch.ids))
            ids.append(batch.ids)
        check.look_at(name, data.ordered_loader(part))
    if data.corrupted is not None:  # these labels were changed after they were read
        stored.forget_labels(torch.cat(ids)[: len(data.corrupted)][data.corrupted])
    check.finish(ParallelContext(), allow=config.allow_bad_teacher)
    return StoredPredictions(stored.stored_logits, stored.ids)


def _stored_metrics(stored: StoredPredictions, data: TaskData) -> dict[str, float]:
    def evaluate(loader: Iterable[Any]) -> dict[str, float]:
        running = data.metrics.accumulator()
        for _, target, ids in loader:
            running.update(stored.lookup(ids), target)
        return running.compute()

    try:
        return both_metrics(evaluate, data)
    except InputError:  # training needs no predictions for test samples, so a file may well lack them
        return _validation_metrics(evaluate, data)


def both_metrics(evaluate: Evaluate, data: TaskData) -> dict[str, float]:
    """Metrics on the test set, and on the validation set as ``val_...``."""
    validation = _validation_metrics(evaluate, data)
    return evaluate(data.ordered_loader(data.test)) | validation


def _validation_metrics(evaluate: Evaluate, data: TaskData) -> dict[str, float]:
    return {f"val_{name}": value for name, value in evaluate(data.ordered_loader(data.held_out)).items()}
