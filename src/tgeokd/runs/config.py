"""Everything a run needs, as plain data: what ``config.yaml`` holds."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from tgeokd.data import TASKS
from tgeokd.runs.results import TrainOn
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.utils.errors import InputError, check_names, one_line
from tgeokd.utils.validation import (
    Config,
    StrictBool,
    StrictFloat,
    StrictInt,
    replace,
    validate_config,
    validate_value,
)

__all__ = [
    "OptimizerConfig",
    "Recipe",
    "RunConfig",
    "TeacherRecipe",
    "load_config",
    "override",
    "preset",
    "presets",
    "replace",
]

Positive = Annotated[StrictInt, Field(ge=1)]
_CacheOptions = Annotated[
    TeacherCacheOptions | None,
    BeforeValidator(lambda value: validate_value(TeacherCacheOptions | None, value, "teacher_cache")),
]


class OptimizerConfig(Config):
    """An optimizer and its schedule.

    Attributes:
        name: ``sgd``, ``adam`` or ``adamw``.
        lr: learning rate at the start.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: coupled for SGD and Adam, decoupled for AdamW.
        schedule: ``constant``, ``cosine`` (to 0 over the run) or ``steps`` (times 0.1 at each milestone).
        milestones: epochs of the steps.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[StrictFloat, Field(gt=0)] = 0.1
    momentum: StrictFloat = 0.9
    nesterov: StrictBool = False
    weight_decay: StrictFloat = 0.0
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    milestones: tuple[StrictInt, ...] = ()

    def build(self, parameters: Iterable[Tensor], epochs: int) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer, and the scheduler to step once per epoch (None for a constant learning rate)."""
        optimizer: Optimizer
        decay = self.weight_decay
        try:
            if self.name == "sgd":
                optimizer = torch.optim.SGD(
                    parameters, self.lr, self.momentum, weight_decay=decay, nesterov=self.nesterov
                )
            else:
                kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name]
                optimizer = kind(parameters, self.lr, weight_decay=decay)
        except ValueError as error:  # torch names what is impossible
            raise InputError(f"{self.name}: {error}") from error
        if self.schedule == "cosine":
            return optimizer, CosineAnnealingLR(optimizer, epochs)
        if self.schedule == "steps":
            return optimizer, MultiStepLR(optimizer, list(self.milestones))
        return optimizer, None


class Recipe(Config):
    """A model and its training.

    Attributes:
        model: ``name`` and the model's own options.
        epochs: passes over the training data.
        batch_size: samples in a step.
        optimizer: see :class:`OptimizerConfig`.
        patience: epochs without a lower validation loss before training stops and the best weights are restored; None for no
            early stopping.
        clip_norm: bound of the gradient's norm.
        held_out_batch_size: samples in a batch of the validation set, and so of the outer problem of a bilevel method.
    """

    model: dict[str, Any]
    epochs: Positive
    batch_size: Positive = 64
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    patience: Positive | None = None
    clip_norm: StrictFloat | None = None
    held_out_batch_size: Positive = 1024


class TeacherRecipe(Recipe):
    """How to obtain the teacher: by training, or from a file.

    Attributes:
        model: ``name`` and options of a network, or of a classifier with ``predict_proba`` (``lightgbm``, ``random_forest``,
            ...; :data:`tgeokd.teachers.CLASSIFIERS`), which uses none of the other settings.
        epochs: of training; 0 takes the network as it is built (pretrained).
        weights: file with the network's weights (``.safetensors``, or a checkpoint with them under ``model``): not trained.
        predictions: file of class probabilities or logits with sample ids, instead of a model.
    """

    model: dict[str, Any] = Field(default_factory=dict)
    epochs: Annotated[StrictInt, Field(ge=0)] = 0
    weights: str | None = None
    predictions: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.predictions is not None and (self.model or self.weights is not None):
            raise InputError(
                "teacher.predictions replaces the model: set teacher.model={} and teacher.weights=null as well"
            )
        if self.predictions is None and not self.model:
            raise InputError("the teacher needs teacher.model, or teacher.predictions")
        return self


class RunConfig(Config):
    """One run: a student distilled from a teacher on a task by a method.

    Attributes:
        task: name of the task.
        data: options of the task's data.
        data_dir: folder of the user's data.
        metrics: names of metrics to report besides those of the task.
        teacher: see :class:`TeacherRecipe`.
        student: see :class:`Recipe`.
        method: name of the method.
        options: the method's options.
        train_on: ``train``, or ``train+val`` to train on the validation samples too (the control rows of a comparison).
        temperature: ``tau`` of the teacher term.
        teacher_cache: compute a network's logits once and train on the stored ones, see
            :class:`~tgeokd.teachers.TeacherCacheOptions`; ``{}`` for the defaults, None runs the teacher in every step. In a
            comparison all rows of a seed share the stored logits.
        checkpoint_every: epochs between two checkpoints of the student.
        seed: of everything random: split, noise, weights, order.
        accelerator: as in Lightning Fabric.
        precision: as in Lightning Fabric.
        compile: compile the training passes with ``torch.compile``; worth it for long runs on a GPU.
        threads: torch threads of a run on the CPU; None leaves torch's choice.
    """

    task: str
    teacher: TeacherRecipe
    student: Recipe
    data: dict[str, Any] = Field(default_factory=dict)
    data_dir: str | None = None
    metrics: tuple[str, ...] = ()
    method: str = "tgeo"
    options: dict[str, Any] = Field(default_factory=dict)
    train_on: TrainOn = "train"
    temperature: StrictFloat = 4.0
    teacher_cache: _CacheOptions = None
    checkpoint_every: Positive = 1
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    compile: StrictBool = False
    threads: Positive | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML or JSON, which :func:`~tgeokd.utils.validation.validate_config` turns back into this config."""
        plain: dict[str, Any] = _plain(self.model_dump())
        return plain


def presets(task: str) -> list[str]:
    """Names of the recipes shipped for a task."""
    check_names("task", [task], TASKS)
    folder = resources.files("tgeokd.runs.presets").joinpath(task)
    if not folder.is_dir():
        raise InputError(f"task {task!r} has no presets: give a --config")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def preset(task: str, name: str = "lite") -> RunConfig:
    """A recipe shipped for a task: ``lite`` for two CPU cores and minutes, ``paper`` for a GPU, and a few more."""
    check_names(f"preset of {task}", [name], presets(task))
    text = resources.files("tgeokd.runs.presets").joinpath(task, f"{name}.yaml").read_text()
    return validate_config(RunConfig, yaml.safe_load(text))


def load_config(path: Path) -> RunConfig:
    """A config from a YAML file."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {one_line(error)}") from error
    return validate_config(RunConfig, content, str(path))


def override(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """Change single settings given as ``key=value``, with dots into nested ones: ``student.optimizer.lr=0.05``.

    Raises:
        InputError: for a key that does not exist (with the nearest name) or a value of the wrong type.
    """
    content = config.to_dict()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes key=value, not {setting!r}")
        *path, last = key.strip().split(".")
        place = content
        for name in path:
            if place.get(name) is None:
                place[name] = {}  # refused below unless it is a setting of that kind
            elif not isinstance(place[name], dict):
                raise InputError(f"--set {key.strip()}: {name!r} is a value and has no settings of its own")
            place = place[name]
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the value of --set {setting!r} is not YAML") from error
    return validate_config(RunConfig, content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
