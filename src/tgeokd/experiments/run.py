"""One run from its config: data, teacher, student, results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from tgeokd.data import TASKS, TaskData
from tgeokd.distiller import Distiller
from tgeokd.errors import InputError
from tgeokd.experiments.config import Recipe, RunConfig
from tgeokd.methods import Method, build_method
from tgeokd.models import build_model
from tgeokd.names import look_up
from tgeokd.runfolder import RunFolder, replace_file
from tgeokd.typed import call_checked

__all__ = [
    "RunResult",
    "build_distiller",
    "build_student",
    "check",
    "load_data",
    "load_teacher",
    "run",
    "train_teacher",
]


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        metrics: ``accuracy`` and ``nll`` of the student on the test set after the last epoch, ``val_accuracy`` and
            ``val_nll`` on the held-out set.
        seconds: of the student's training alone.
        epochs: trained.
    """

    metrics: dict[str, float]
    seconds: float
    epochs: int


def load_data(config: RunConfig) -> TaskData:
    """The task's data under the run's seed."""
    task = look_up("task", config.task, TASKS)
    data: TaskData = call_checked(f"task {config.task!r}", task, config.data, seed=config.seed)
    return data


def train_teacher(config: RunConfig, data: TaskData, path: Path, *, progress: bool = False) -> dict[str, float]:
    """Train the teacher on the training labels, choose its epoch on the held-out set, and save its weights.

    Returns:
        Its metrics on the test set, and on the held-out set as ``val_...``.
    """
    _use_threads(config)
    teacher = _model(config.teacher, data, seed=_teacher_seed(config))
    distiller = build_distiller(teacher, None, build_method("ce"), config, config.teacher, progress=progress)
    _fit(distiller, config.teacher, data, seed=_teacher_seed(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_model(teacher, str(temporary)))
    return _metrics(distiller, data)


def load_teacher(config: RunConfig, data: TaskData, path: Path) -> nn.Module:
    """The teacher whose weights were saved."""
    teacher = _model(config.teacher, data, seed=_teacher_seed(config))
    try:
        load_model(teacher, str(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the teacher from {path}: {' '.join(str(error).split())}") from error
    return teacher


def build_student(config: RunConfig, data: TaskData) -> nn.Module:
    """The student before training, as the run's seed initialises it."""
    return _model(config.student, data, seed=config.seed)


def check(config: RunConfig) -> None:
    """Build what can be built without training, so that wrong settings fail before anything is written or trained."""
    method, data = _method(config), load_data(config)
    for recipe, role in ((config.teacher, build_method("ce")), (config.student, method)):
        build_distiller(_model(recipe, data, seed=0), nn.Identity(), role, config, recipe, progress=False)


def run(
    config: RunConfig,
    teacher_path: Path,
    out: Path | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
) -> RunResult:
    """Distil the student and evaluate it on the test set.

    Args:
        config: the run, as :func:`check` accepts it.
        teacher_path: weights of the teacher, as :func:`train_teacher` saved them.
        out: folder for the run's files; None writes nothing.
        resume: continue the run in ``out``.
        progress: show a bar.
    """
    _use_threads(config)
    data, method = load_data(config), _method(config)
    teacher = load_teacher(config, data, teacher_path)
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, progress=progress)
    with_held_out = config.train_on == "train+val"
    started = time.perf_counter()
    _fit(
        distiller,
        config.student,
        data,
        seed=config.seed,
        with_held_out=with_held_out,
        checkpoint_every=config.checkpoint_every,
        out=out,
        resume=resume,
    )
    # Of a resumed run, the epochs that an earlier process trained count too.
    earlier = sum(record["seconds"] for record in distiller.history[: distiller.resumed_at])
    seconds = earlier + time.perf_counter() - started
    result = RunResult(_metrics(distiller, data), round(seconds, 3), len(distiller.history))
    if out is not None:
        _write_results(config, distiller, data, result, RunFolder(out, resume=True))
    return result


def _write_results(
    config: RunConfig, distiller: Distiller, data: TaskData, result: RunResult, folder: RunFolder
) -> None:
    content: dict[str, Any] = {
        "task": config.task,
        "method": config.method,
        "options": config.options,
        "train_on": config.train_on,
        "seed": config.seed,
        "metrics": result.metrics,
        "seconds": result.seconds,
        "epochs": result.epochs,
    }
    try:
        ratios = distiller.fusion_ratios(data.ordered_loader(data.train))
    except NotImplementedError:  # a method whose ratios are not a function of the sample's geometry
        pass
    else:
        known = data.corrupted
        folder.write_json(
            "ratios.json",
            {"alpha": [round(a, 4) for a in ratios.tolist()], "corrupted": None if known is None else known.tolist()},
        )
    folder.write_json("results.json", content)


def _method(config: RunConfig) -> Method:
    method = build_method(config.method, **config.options)
    if config.train_on == "train+val" and method.outer is not None:
        raise InputError(
            f"method {config.method!r} needs held-out samples; train_on=train+val leaves none (use outer=union)"
        )
    return method


def _use_threads(config: RunConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _teacher_seed(config: RunConfig) -> int:
    return config.seed + 10_000  # teacher and student must not start from the same random numbers


def _model(recipe: Recipe, data: TaskData, *, seed: int) -> nn.Module:
    options = dict(recipe.model)
    if "name" not in options:
        raise InputError("a model needs a name: model.name")
    for fixed in ("in_features", "num_classes"):
        if fixed in options:
            raise InputError(f"model.{fixed} follows from the data and cannot be set")
    sample, _ = data.train[0]
    torch.manual_seed(seed)
    return build_model(options.pop("name"), in_features=sample.numel(), num_classes=data.num_classes, **options)


def build_distiller(
    model: nn.Module, teacher: nn.Module | None, method: Method, config: RunConfig, recipe: Recipe, *, progress: bool
) -> Distiller:
    """The Distiller of a model by its recipe: the student's, or the teacher's own with no teacher."""
    optimizer, scheduler = recipe.optimizer.build(model.parameters(), recipe.epochs)
    return Distiller(
        model,
        teacher,
        method,
        optimizer,
        temperature=config.temperature,
        scheduler=scheduler,
        clip_norm=recipe.clip_norm,
        accelerator=config.accelerator,
        precision=config.precision,
        progress=progress,
    )


def _fit(
    distiller: Distiller,
    recipe: Recipe,
    data: TaskData,
    *,
    seed: int,
    with_held_out: bool = False,
    checkpoint_every: int = 1,
    out: Path | None = None,
    resume: bool = False,
) -> None:
    distiller.fit(
        data.training_loader(recipe.batch_size, with_held_out=with_held_out),
        data.ordered_loader(data.held_out),
        epochs=recipe.epochs,
        seed=seed,
        patience=recipe.patience,
        checkpoint_every=checkpoint_every,
        out=out,
        resume=resume,
    )


def _metrics(distiller: Distiller, data: TaskData) -> dict[str, float]:
    test = distiller.evaluate(data.ordered_loader(data.test))
    held_out = distiller.evaluate(data.ordered_loader(data.held_out))
    return test | {f"val_{name}": value for name, value in held_out.items()}
