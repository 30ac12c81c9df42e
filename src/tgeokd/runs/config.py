"""Everything a run needs, as plain data: what ``config.yaml`` holds."""

import typing
from collections.abc import Iterable
from contextlib import suppress
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
from tgeokd.methods import current_names
from tgeokd.runs.results import TrainOn
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.training.divergence import OnDivergence
from tgeokd.utils.documents import parse_yaml, read_yaml
from tgeokd.utils.errors import InputError, check_names
from tgeokd.utils.files import user_path
from tgeokd.utils.validation import Config, StrictBool, StrictFloat, StrictInt, replace, validate_config, validate_value

__all__ = ["Recipe", "RunConfig", "load_config", "override", "parse_setting", "preset", "presets", "replace"]

MARKS = set(",|>&*!%@`#?-:")  # of YAML's syntax; alone they mean themselves, as a separator does

Positive = Annotated[StrictInt, Field(ge=1)]
_CacheOptions = Annotated[
    TeacherCacheOptions | None,
    BeforeValidator(lambda value: validate_value(TeacherCacheOptions | None, value, "teacher_cache")),
]


def _home(value: Any) -> Any:
    """Text, or the texts of a dict, with ``~/`` as the home folder."""
    if isinstance(value, dict):
        return {key: _home(item) for key, item in value.items()}
    return str(user_path(value)) if isinstance(value, str) and value.startswith("~/") else value


UserPath = Annotated[str, BeforeValidator(_home)]
DataOptions = Annotated[dict[str, Any], BeforeValidator(_home)]


class OptimizerConfig(Config):
    """An optimizer and its schedule."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[StrictFloat, Field(gt=0)] = 0.1  # at the start
    momentum: StrictFloat = 0.9  # of SGD
    nesterov: StrictBool = False  # of SGD
    weight_decay: StrictFloat = 0.0  # coupled for SGD and Adam, decoupled for AdamW
    schedule: Literal["constant", "cosine", "steps"] = "constant"  # to 0 over the run; times 0.1 at each milestone
    milestones: tuple[StrictInt, ...] = ()  # epochs

    def build(self, parameters: Iterable[Tensor], epochs: int) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer, and the scheduler to step once per epoch (None for a constant learning rate)."""
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name]
        own = {"momentum": self.momentum, "nesterov": self.nesterov} if self.name == "sgd" else {}
        try:
            optimizer: Optimizer = kind(parameters, lr=self.lr, weight_decay=self.weight_decay, **own)
        except ValueError as error:  # torch names what is impossible
            raise InputError(f"{self.name}: {error}") from error
        if self.schedule == "cosine":
            return optimizer, CosineAnnealingLR(optimizer, epochs)
        if self.schedule == "steps":
            return optimizer, MultiStepLR(optimizer, list(self.milestones))
        return optimizer, None


class Recipe(Config):
    """A model and its training."""

    model: dict[str, Any]  # ``name`` and the model's own options
    epochs: Positive
    batch_size: Positive = 64
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    patience: Positive | None = None  # epochs without a lower validation loss, then the best weights are restored
    clip_norm: StrictFloat | None = None  # bound of the gradient's norm
    held_out_batch_size: Positive = 1024  # of the validation set, and so of the outer problem of a bilevel method


class FeaturesConfig(Config):
    """Images or texts replaced by features of a frozen pretrained network, see :mod:`tgeokd.runs.features`."""

    model: dict[str, Any]  # ``name`` and the model's own options
    weights: UserPath | None = None  # of the model, a file as teacher.weights
    components: Positive = 256  # principal components kept, at most
    mirrored: StrictBool = True  # of images, train on the mirrored ones too


class TeacherRecipe(Recipe):
    """How to obtain the teacher: by training a model, or from a file.

    The model is a network, or a classifier of :data:`tgeokd.teachers.CLASSIFIERS`, which uses none of the other settings.

    With ``train=head`` the model is a (pretrained) network of which only a new last layer is trained, on features that are
    computed once. With ``data`` a network sees other inputs of the same samples than the student, for example larger images.
    With ``folds`` training samples get out-of-fold predictions. In these cases the predictions are stored by sample id, for
    samples without augmentation.
    """

    model: dict[str, Any] = Field(default_factory=dict)
    epochs: Annotated[StrictInt, Field(ge=0)] = 0  # of training; 0 takes the network as it is built (pretrained)
    weights: UserPath | None = None  # ``.safetensors``, or a checkpoint with the weights under ``model``; not trained
    data: DataOptions = Field(default_factory=dict)  # options of the task's data that differ from the student's
    train: Literal["all", "head"] = "all"  # the whole network, or a linear layer on features of the frozen network
    folds: Positive = 1  # more: each training sample is predicted by a teacher trained without it (tgeokd.runs.folds)
    predictions: UserPath | None = None  # file of class probabilities or logits with sample ids, instead of a model

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.predictions is not None and (self.model or self.weights is not None):
            raise InputError(
                "teacher.predictions replaces the model: set teacher.model={} and teacher.weights=null as well"
            )
        if self.predictions is None and not self.model:
            raise InputError("the teacher needs teacher.model, or teacher.predictions")
        if self.folds > 1 and (self.predictions is not None or (self.weights is not None and self.train == "all")):
            raise InputError("teacher.folds is for a teacher that is trained here: without predictions or weights")
        if self.train == "head" and (self.predictions is not None or not self.epochs):
            raise InputError(
                "teacher.train=head trains a layer on the features of teacher.model: give teacher.epochs >= 1"
            )
        return self


class RunConfig(Config):
    """One run: a student distilled from a teacher on a task by a method.

    ``teacher_cache`` computes a network's logits once and trains on the stored ones; ``{}`` for the defaults, None runs the
    teacher in every step. In a comparison all rows of a seed share the stored logits.
    """

    task: str
    teacher: TeacherRecipe
    student: Recipe
    data: DataOptions = Field(default_factory=dict)  # options of the task's data
    data_dir: UserPath | None = None  # folder of the user's data
    features: FeaturesConfig | None = None  # train teacher and student on features of the images
    metrics: tuple[str, ...] = ()  # to report besides those of the task
    method: str = "tgeo"
    options: dict[str, Any] = Field(default_factory=dict)  # of the method
    train_on: TrainOn = "train"  # train+val: on the validation samples too (the control rows of a comparison)
    temperature: StrictFloat = 4.0  # ``tau`` of the teacher term
    teacher_cache: _CacheOptions = None
    allow_bad_teacher: StrictBool = False  # warn instead of refusing a teacher that cannot be the one of these samples
    checkpoint_every: Positive = 1  # epochs between two checkpoints, of the teacher's training too
    checkpoint_minutes: Annotated[StrictFloat, Field(gt=0)] | None = 5.0  # after which one is written within an epoch
    keep_checkpoints: Positive = 2  # of the newest; the newest of the end of an epoch and the best one are kept too
    on_divergence: OnDivergence = "stop"  # or skip, or rollback, see tgeokd.Distiller
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0  # of everything random: split, noise, weights, order
    accelerator: str = "auto"  # as in Lightning Fabric
    precision: str = "32-true"  # as in Lightning Fabric
    compile: StrictBool = False  # the training passes, with ``torch.compile``; worth it for long runs on a GPU
    threads: Positive | None = None  # torch threads of a run on the CPU; None leaves torch's choice

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and isinstance(values.get("method"), str)
            and isinstance(values.get("options"), dict)
        ):
            method, options = current_names(values["method"], values["options"])
            return {**values, "method": method, "options": options}
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML or JSON, which :func:`~tgeokd.utils.validation.validate_config` turns back into this config."""
        return {key: _plain(value) for key, value in self.model_dump().items()}


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
    return validate_config(RunConfig, parse_yaml(text, f"{task}/{name}.yaml"))


def load_config(path: Path) -> RunConfig:
    """A config from a YAML file."""
    path = user_path(path)
    content = read_yaml(path)
    return validate_config(RunConfig, content, str(path))


def override(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """Change single settings given as ``key=value``, with dots into nested ones: ``student.optimizer.lr=0.05``.

    Raises:
        InputError: for a key that does not exist (with the nearest name) or a value of the wrong type.
    """
    content = config.to_dict()
    for setting in settings:
        key, value = parse_setting(setting, setting, "--set key=value")
        *path, last = key.split(".")
        value = _as_meant(_annotation(content, path, last), value, setting.partition("=")[2])
        place = content
        for name in path:
            if place.get(name) is None:
                place[name] = {}  # refused below unless it is a setting of that kind
            elif not isinstance(place[name], dict):
                raise InputError(f"--set {key}: {name!r} is a value and has no settings of its own")
            place = place[name]
        place[last] = value
    return validate_config(RunConfig, content)


def parse_setting(text: str, given: str, form: str) -> tuple[str, Any]:
    """Key and value of ``key=value``, the value read as YAML; ``given`` and its ``form`` are for messages."""
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{given!r} must have the form {form}")
    if value.strip() in MARKS:
        return key.strip(), value.strip()
    return key.strip(), parse_yaml(value, f"the value of {key!r} in {given!r}")


def _annotation(content: dict[str, Any], path: list[str], name: str) -> Any:
    """The type of a setting: of the config, or of an option of the task's data; Any where it is not known here."""
    if path in (["data"], ["teacher", "data"]):
        task = str(content.get("task"))
        return typing.get_type_hints(TASKS[task]).get(name, Any) if task in TASKS else Any
    kind: Any = RunConfig
    for each in (*path, name):
        if not (isinstance(kind, type) and issubclass(kind, Config)) or each not in kind.model_fields:
            return Any
        kind = kind.model_fields[each].annotation
    return Any if isinstance(kind, type) and issubclass(kind, Config) else kind


def _as_meant(annotation: Any, value: Any, text: str) -> Any:
    """A value read as YAML, or with its words as they were typed where only that fits the type: ``yes`` is a boolean in YAML,
    ``2024`` a number and ``2024-01-01`` a date, but each can be the name of a column or a class.
    """
    if isinstance(value, str) or annotation is Any:
        return value
    for read in (value, yaml.load(text, yaml.BaseLoader)):
        with suppress(InputError):
            validate_value(annotation, read, "")
            return read
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
