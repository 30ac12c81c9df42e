"""What was trained, in plain values: a resumed run is compared with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from tgeokd.bilevel.functional import trainable
from tgeokd.data.digest import content_digest
from tgeokd.methods import Method
from tgeokd.training.batches import length_of
from tgeokd.utils.errors import InputError, check_names

if TYPE_CHECKING:
    from tgeokd.training.loop import TrainingLoop
    from tgeokd.training.state import TrainState

Prints = Mapping[str, Mapping[str, Any]]

CHANGEABLE = (
    *("epochs", "batch_size", "accumulate", "temperature", "clip_norm", "precision", "seed", "options", "loader"),
    *("optimizer", "scheduler", "data", "teacher", "trainable"),
)
"""What ``fit(..., accept_changes=...)`` can name. Student, method and class of the optimizer have states that fit no other."""

SETTINGS = {
    "epochs",
    "batch_size",
    "temperature",
    "clip_norm",
    "precision",
    "options",
    "optimizer",
    "scheduler",
}  # of a config
SCHEDULE = ("epochs", "scheduler", "optimizer")  # a learning rate follows from these
OF_ONE_EPOCH = ("batch_size", "data", "loader", "seed")  # they decide which batches of a begun epoch are left
STEERED = ("momentum", "betas")  # by schedulers that cycle them
# What the state of a scheduler holds beside its settings, and which of its private entries are settings.
POSITION = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i", "base_lrs", "optimizer")
PRIVATE = ("_milestones", "_schedule_phases", "_anneal_func_type")

# The parameter groups before a training in this process moved them, for a Distiller that trains again.
_before: WeakKeyDictionary[Optimizer, dict[str, Any]] = WeakKeyDictionary()


def fingerprints_of(loop: TrainingLoop, *, resume: bool) -> dict[str, dict[str, Any]]:
    """What must be the same when the run is resumed, taken before training; None where it cannot be known."""
    step, distiller, loader = loop.step, loop.distiller, loop.train_loader
    optimizer, scheduler = distiller.optimizer, distiller.scheduler
    held_out = loop.validation
    return {
        "configuration": {
            "method": step.method.name,
            "options": _options_of(step.method),
            "seed": step.seed,
            "optimizer": type(optimizer).__name__,
            "scheduler": "none" if scheduler is None else type(scheduler).__name__,
            "temperature": step.temperature,
            "clip_norm": step.clip_norm or "none",
            "accumulate": distiller.accumulate,
            "batch_size": getattr(loader, "batch_size", None),
            "precision": distiller.precision,
            # without a schedule, a run that is made longer is what it would have been from the start
            "epochs": loop.epochs if scheduler is not None or step.method.needs_epochs else None,
            "parameters": sum(parameter.numel() for parameter in step.student.parameters()),
            "trainable": sum(parameter.numel() for parameter in trainable(step.student).values()),
        },
        "optimizer": _hyperparameters(optimizer, steered=hasattr(scheduler, "cycle_momentum"), resume=resume),
        "scheduler": {"every": distiller.scheduler_every, **settings_of(scheduler)} if scheduler is not None else {},
        "loader": {
            "drop_last": getattr(loader, "drop_last", None),
            "sampler": type(loader.sampler).__name__ if hasattr(loader, "sampler") else None,
        },
        "data": {
            "training samples": length_of(getattr(loader, "dataset", None)),
            "validation samples": length_of(getattr(held_out, "dataset", None)),
            "training content": content_digest(getattr(loader, "dataset", loader)),
            "validation content": content_digest(getattr(held_out, "dataset", held_out)),
        },
        "teacher": {"weights": None if distiller.teacher is None else distiller.teacher.fingerprint()},
    }


def accepted_changes(state: TrainState, now: Prints, accept: Collection[str]) -> set[str]:
    """Which of the changes that the user accepts there are.

    Args:
        state: of the checkpoint.
        now: as :func:`fingerprints_of` returns them.
        accept: names of :data:`CHANGEABLE`.

    Raises:
        InputError: for any other change, all of them named, and for one that is impossible in the middle of an epoch.
    """
    found = differences(state.fingerprints, now)
    if ("configuration", "optimizer") in found:  # then its settings differ too, and need not be listed
        found = {place: text for place, text in found.items() if place[0] != "optimizer"}
    if ("configuration", "parameters") in found:
        found.pop(("configuration", "trainable"), None)
    if ("configuration", "scheduler") in found:
        found = {place: text for place, text in found.items() if place[0] != "scheduler"}
    names = {place: _changeable(*place) for place in found}
    refused = {place: text for place, text in found.items() if names[place] not in accept}
    if refused:
        raise InputError(
            f"the run to resume was started with other settings: {'; '.join(refused.values())}. {_way_out(refused, names)}"
        )
    changed = {name for name in names.values() if name is not None}
    torn = sorted(changed.intersection(OF_ONE_EPOCH))
    if state.batch and torn:
        raise InputError(
            f"the checkpoint is in the middle of epoch {state.epoch + 1}, after batch {state.batch}, whose other batches "
            f"depend on {', '.join(torn)}: resume with the settings of before until the epoch has ended, then change them"
        )
    return changed


def check_accepted(accept: Iterable[str], *, resume: bool) -> tuple[str, ...]:
    """The names of accepted changes; InputError for an unknown one, or without a run to resume."""
    if isinstance(accept, str):
        raise InputError(f"accept_changes must be a list of names, not the text {accept!r}")
    accept = tuple(accept)
    check_names("change to accept:", accept, CHANGEABLE)
    if accept and not resume:
        raise InputError("accept_changes is for a run that is resumed: resume=True")
    return accept


def differences(saved: Prints, now: Prints) -> dict[tuple[str, str], str]:
    """What differs between two sets of fingerprints, by group and key, each in words; unknown (None) is equal."""
    return {
        (group, key): f"{group}.{key}: {saved[group][key]!r} in the checkpoint, {value!r} now"
        for group, values in now.items()
        for key, value in values.items()
        if value is not None and saved.get(group, {}).get(key) is not None and saved[group][key] != value
    }


def settings_of(scheduler: Any) -> dict[str, Any]:
    """The settings of a scheduler, also one of several schedulers, without where it stands in its schedule."""
    found: dict[str, Any] = {}
    for key, value in scheduler.state_dict().items():
        if key not in POSITION and (not key.startswith("_") or key in PRIVATE):
            with suppress(TypeError, ValueError):  # not a plain value
                found[key] = json.loads(json.dumps(value))
    for index, inner in enumerate(getattr(scheduler, "_schedulers", ())):
        found |= {f"{type(inner).__name__} {index}.{key}": value for key, value in settings_of(inner).items()}
    return {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in found.items()}


def _changeable(group: str, key: str) -> str | None:
    """The name by which a difference can be accepted; None where it cannot."""
    if group != "configuration":
        return group
    return key if key in CHANGEABLE and key != "optimizer" else None


def _way_out(refused: Iterable[tuple[str, str]], names: Mapping[tuple[str, str], str | None]) -> str:
    acceptable = sorted({str(names[place]) for place in refused if names[place] is not None})
    if any(names[place] is None for place in refused):
        return "Resume with the same student, method and class of optimizer, or start a new run from its student.safetensors"
    command = " (on the command line, with --set)" if SETTINGS.issuperset(acceptable) else ""
    return f"Resume with the same, or take the new with accept_changes={acceptable}{command}"


def _hyperparameters(optimizer: Optimizer, *, steered: bool, resume: bool) -> dict[str, Any]:
    """Of the parameter groups before training: one value where they agree, otherwise the list of them as text."""
    if resume and optimizer in _before:
        return _before[optimizer]
    left_out = ("params", "param_names", "initial_lr", *(STEERED if steered else ()))
    groups = []
    for group in optimizer.param_groups:
        values = {key: _plain(value) for key, value in group.items() if key not in left_out}
        groups.append(values | {"lr": _plain(group.get("initial_lr", group.get("lr")))})
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for group in groups for key in group):
        of_groups = [group.get(key) for group in groups]
        found[key] = of_groups[0] if all(value == of_groups[0] for value in of_groups) else json.dumps(of_groups)
    _before[optimizer] = found
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else str(tuple(value.shape))
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    with suppress(TypeError, ValueError):
        return json.dumps(value)
    return None


def _options_of(method: Method) -> str:
    """The public attributes of a method that are plain values, as text."""
    plain = {}
    for name, value in vars(method).items():
        if value is not None and not name.startswith("_"):
            with suppress(TypeError):  # not a plain value
                plain[name] = json.dumps(value)
    return ", ".join(f"{name}={text}" for name, text in plain.items())
