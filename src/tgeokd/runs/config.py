"""Everything a run needs, as plain data: what `config.yaml` holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from tgeokd.data import TASKS
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.utils.errors import InputError, one_line, unknown_name
from tgeokd.utils.registry import look_up
from tgeokd.utils.typed import from_mapping

__all__ = [
    "OptimizerConfig",
    "Recipe",
    "RunConfig",
    "TeacherRecipe",
    "TrainOn",
    "load_config",
    "override",
    "preset",
    "presets",
]

TrainOn = Literal["train", "train+val"]


@dataclass(frozen=True)
class OptimizerConfig:
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
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    milestones: tuple[int, ...] = ()

    def build(self, parameters: Iterable[Tensor], epochs: int) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer, and the scheduler to step once an epoch."""
        if not self.lr > 0:
            raise InputError(f"lr must be > 0, not {self.lr}")
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


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
        model: ``name`` and the model's own options.
        epochs: passes over the training data.
        batch_size: samples in a step.
        optimizer: see :class:`OptimizerConfig`.
        patience: epochs without a lower held-out loss before training stops and the best weights return; None trains on.
        clip_norm: bound of the gradient's norm.
        held_out_batch_size: samples in a batch of the held-out set, and so of a bilevel method's outer problem.
    """

    model: dict[str, Any]
    epochs: int
    batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    patience: int | None = None
    clip_norm: float | None = None
    held_out_batch_size: int = 1024

    fewest_epochs: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name, least in (("epochs", self.fewest_epochs), ("batch_size", 1), ("held_out_batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be >= {least}, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be >= 1 or null, not {self.patience}")


@dataclass(frozen=True)
class TeacherRecipe(Recipe):
    """How the teacher comes about: trained here, or taken as it is.

    Attributes:
        model: ``name`` and options of a network, or of a classifier with ``predict_proba`` (``lightgbm``, ``random_forest``,
            ...; :data:`tgeokd.teachers.CLASSIFIERS`), whose training takes none of the other settings.
        epochs: of training; 0 takes the network as it is built (pretrained).
        weights: file with the network's weights (``.safetensors``, or a checkpoint with them under ``model``): not trained.
        predictions: file of class probabilities or logits with sample ids, instead of a model.
    """

    model: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    weights: str | None = None
    predictions: str | None = None

    fewest_epochs: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictions is not None and (self.model or self.weights is not None):
            raise InputError("teacher.predictions stand in for a model: set teacher.model={} and teacher.weights=null")
        if self.predictions is None and not self.model:
            raise InputError("the teacher needs teacher.model, or teacher.predictions")


@dataclass(frozen=True)
class RunConfig:
    """One run: a student distilled from a teacher on a task by a method.

    Attributes:
        task: name of the task.
        data: options of the task's data.
        data_dir: folder of the user's data.
        teacher: how the teacher is made.
        student: how the student is made.
        method: name of the method.
        options: the method's options.
        train_on: ``train``, or ``train+val`` to train on the held-out samples too (the control rows of a comparison).
        temperature: ``tau`` of the teacher term.
        teacher_cache: ask a network once and train on what it said, see :class:`~tgeokd.teachers.TeacherCacheOptions`; ``{}``
            for the defaults, None asks it in every step. In a comparison all rows of a seed share its answers.
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
    data: dict[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    method: str = "tgeo"
    options: dict[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "train"
    temperature: float = 4.0
    teacher_cache: TeacherCacheOptions | None = None
    checkpoint_every: int = 1
    seed: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every must be >= 1, not {self.checkpoint_every}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be >= 1 or null, not {self.threads}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must lie in [0, 2^31), not {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML or JSON, from which :func:`from_mapping` makes the same config."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def presets(task: str) -> list[str]:
    """Names of the recipes shipped for a task."""
    look_up("task", task, dict.fromkeys(TASKS))
    files = resources.files("tgeokd.runs.presets").joinpath(task).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def preset(task: str, name: str = "lite") -> RunConfig:
    """A recipe shipped for a task: ``lite`` for two CPU cores and minutes, ``paper`` for a GPU, and a few more."""
    look_up(f"preset of {task}", name, dict.fromkeys(presets(task)))
    text = resources.files("tgeokd.runs.presets").joinpath(task, f"{name}.yaml").read_text()
    return from_mapping(RunConfig, yaml.safe_load(text))


def load_config(path: Path) -> RunConfig:
    """A config from a YAML file."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a mapping of settings")
    return from_mapping(RunConfig, content)


def override(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """Change single settings given as ``key=value``, with dots into nested ones: ``student.optimizer.lr=0.05``.

    Raises:
        InputError: for a key that does not exist (with the nearest name) or a value of the wrong type.
    """
    content = config.to_dict()
    open_ended = ("data", "options", "model")  # their keys are checked by the task, method or model itself
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes key=value, not {setting!r}")
        *path, last = key.strip().split(".")
        if path == ["teacher_cache"] and content["teacher_cache"] is None:
            content["teacher_cache"] = dataclasses.asdict(TeacherCacheOptions())
        place = content
        for i, name in enumerate(path):
            if not isinstance(place.get(name), dict):
                raise unknown_name("setting", ".".join(path[: i + 1]), place)
            place = place[name]
        if last not in place and not (path and path[-1] in open_ended):
            raise unknown_name("setting", key, [".".join([*path, name]) for name in place])
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the value of --set {setting!r} is not YAML") from error
    return from_mapping(RunConfig, content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
