"""Builds what a config describes: data, models, method, Distiller."""

import dataclasses
import inspect
import json
import logging
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgeokd.data import TASKS, InputSpec, TaskData
from tgeokd.methods import Method, build_method
from tgeokd.models import build_model
from tgeokd.models.weights import load_weights
from tgeokd.runs.config import Recipe, RunConfig
from tgeokd.runs.features import featurised
from tgeokd.training.distiller import Distiller
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import call_validated

logger = logging.getLogger(__name__)


def load_data(config: RunConfig) -> TaskData:
    """The task's data under the run's seed. The last result is kept, because consecutive runs often share it."""
    features = None if config.features is None else json.dumps(config.features.model_dump(), sort_keys=True)
    data = _load_data(config.task, json.dumps(config.data, sort_keys=True), config.data_dir, config.seed, features)
    if config.metrics:
        names = tuple(dict.fromkeys((*data.metrics.names, *config.metrics)))
        data = dataclasses.replace(data, metrics=dataclasses.replace(data.metrics, names=names))
    return data


@lru_cache(maxsize=1)
def _load_data(name: str, options: str, data_dir: str | None, seed: int, features: str | None) -> TaskData:
    task = TASKS[name]
    fixed: dict[str, Any] = {"seed": seed}
    folder = inspect.signature(task).parameters.get("data_dir")
    if folder is not None:
        if data_dir is None and folder.default is inspect.Parameter.empty:
            raise InputError(f"task {name!r} reads your own data: give their folder as --data-dir or TGEOKD_DATA")
        if data_dir is not None and not Path(data_dir).is_dir():
            raise InputError(f"the data folder {data_dir} does not exist")
        fixed["data_dir"] = None if data_dir is None else Path(data_dir)
    data: TaskData = call_validated(f"task {name!r}", task, json.loads(options), **fixed)
    if features is not None:
        chosen = json.loads(features)
        network = _network(chosen.pop("model"), data.inputs, data.num_classes, seed=0)
        weights = chosen.pop("weights")
        if weights is not None:
            load_weights(network, Path(weights))
        data = featurised(data, network, seed=seed, **chosen)
    return data


def build_student(config: RunConfig, data: TaskData) -> nn.Module:
    """The student before training, as the run's seed initialises it."""
    return build_network(config.student, data.inputs, data.num_classes, seed=config.seed)


def build_teacher_network(config: RunConfig, data: TaskData) -> nn.Module:
    """The teacher before training."""
    return build_network(config.teacher, data.inputs, data.num_classes, seed=teacher_seed(config))


def teacher_seed(config: RunConfig) -> int:
    """Seed of the teacher: teacher and student must not start from the same random numbers."""
    return config.seed + 10_000


def method_of(config: RunConfig) -> Method:
    """The config's method; refused where it needs validation samples and none are left."""
    method = build_method(config.method, **config.options)
    if config.train_on == "train+val" and method.outer is not None:
        raise InputError(
            f"method {config.method!r} needs validation samples; train_on=train+val leaves none (outer=union trains on them)"
        )
    return method


def build_distiller(
    model: nn.Module, teacher: Any, method: Method, config: RunConfig, recipe: Recipe, data: TaskData, *, progress: bool
) -> Distiller:
    """The Distiller that trains a model by a recipe: the student's, or without a teacher the teacher's own."""
    _warn_if_emulated(config.precision, config.accelerator)
    optimizer, scheduler = recipe.optimizer.build(model.parameters(), max(recipe.epochs, 1))
    return Distiller(
        model,
        teacher,
        method,
        optimizer,
        temperature=config.temperature,
        cache_teacher=config.teacher_cache or False,
        scheduler=scheduler,
        clip_norm=recipe.clip_norm,
        metrics=data.metrics,
        accelerator=config.accelerator,
        precision=config.precision,
        compile=config.compile,
        on_divergence=config.on_divergence,
        allow_bad_teacher=config.allow_bad_teacher,
        progress=progress,
    )


@lru_cache
def _warn_if_emulated(precision: str, accelerator: str) -> None:
    """Warn, once, where bfloat16 would be computed by a processor without instructions for it."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if precision.startswith("bf16") and on_cpu and not _native_bfloat16():
        logger.warning("precision %s: this processor emulates bfloat16 slowly; use precision=32-true", precision)


def _native_bfloat16() -> bool:
    """Whether the processor computes in bfloat16."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True  # newer Arm processors do, and the others cannot be told apart
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fit(distiller: Distiller, recipe: Recipe, data: TaskData, *, with_held_out: bool = False, **options: Any) -> None:
    """Train by a recipe; ``options`` are the other arguments of :meth:`~tgeokd.Distiller.fit`, ``seed`` among them."""
    data = data.on(distiller.device)
    train = data.training_loader(recipe.batch_size, with_held_out=with_held_out)
    validation = data.ordered_loader(data.held_out, recipe.held_out_batch_size)
    distiller.fit(train, validation, epochs=recipe.epochs, patience=recipe.patience, **options)


def saving(config: RunConfig) -> dict[str, Any]:
    """The arguments of :meth:`~tgeokd.Distiller.fit` that say when checkpoints are written."""
    return {name: getattr(config, name) for name in ("checkpoint_every", "checkpoint_minutes", "keep_checkpoints")}


def use_threads(config: RunConfig) -> None:
    """Set the number of torch threads, where the config gives one."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def build_network(recipe: Recipe, inputs: InputSpec, num_classes: int, *, seed: int) -> nn.Module:
    """A recipe's model before training."""
    return _network(recipe.model, inputs, num_classes, seed=seed)


def _network(model: dict[str, Any], inputs: InputSpec, num_classes: int, *, seed: int) -> nn.Module:
    options = dict(model)
    if "name" not in options:
        raise InputError("a model needs a name: model.name")
    for fixed in ("inputs", "num_classes"):
        if fixed in options:
            raise InputError(f"model.{fixed} follows from the data and cannot be set")
    torch.manual_seed(seed)
    return build_model(options.pop("name"), inputs=inputs, num_classes=num_classes, **options)
