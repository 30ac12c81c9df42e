"""Putting the optimizer, its schedule and the student of a resumed run where the checkpoint was."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tgeokd.bilevel.functional import trainable
from tgeokd.core.wrapped import plain_names
from tgeokd.training.fingerprint import SCHEDULE, settings_of
from tgeokd.training.schedule import step_scheduler
from tgeokd.utils.errors import InputError, first_line

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller
    from tgeokd.training.state import TrainState

logger = logging.getLogger(__name__)


def names_by_group(optimizer: Optimizer, student: nn.Module) -> list[list[str]]:
    """The names of the parameters in each group of the optimizer; an empty one for a parameter that is not the student's."""
    names = _names(student)
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def trainable_names(student: nn.Module) -> list[str]:
    """The names of the parameters that are trained."""
    names = _names(student)
    return [names[id(parameter)] for parameter in trainable(student).values()]


def restore_trainable(student: nn.Module, names: list[str] | None) -> None:
    """Freeze and unfreeze the parameters as they were; ``names`` as :func:`trainable_names` returned them."""
    if names is None:
        return
    chosen, known = set(names), _names(student)
    for parameter in student.parameters():
        parameter.requires_grad_(known[id(parameter)] in chosen)


def restore_optimizer(distiller: Distiller, student: nn.Module, state: TrainState, changed: set[str]) -> None:
    """Load the states of optimizer and scheduler.

    Where the user has accepted another schedule, the new one is stepped from its beginning to the place of the checkpoint, so
    that the rate is that of a run with the new schedule from the start; averages of gradients are those of the checkpoint.

    Args:
        distiller: whose optimizer and scheduler were just built.
        student: holds the optimizer's parameters.
        state: of the checkpoint.
        changed: as :func:`~tgeokd.training.fingerprint.accepted_changes` returned them.
    """
    optimizer, scheduler = distiller.optimizer, distiller.scheduler
    own = len(optimizer.param_groups)
    replayed = not changed.isdisjoint(SCHEDULE)
    if replayed and scheduler is not None:
        _replay(scheduler, state, by_step=distiller.scheduler_every == "step", epochs_changed="epochs" in changed)
    settings = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    _match_groups(optimizer, student, state)
    optimizer.load_state_dict(state.optimizer)
    if replayed:
        for group, new in zip(optimizer.param_groups[:own], settings, strict=True):
            group.update(new)
    elif scheduler is not None:
        scheduler.load_state_dict(state.scheduler or {})


def _replay(
    scheduler: LRScheduler | ReduceLROnPlateau, state: TrainState, *, by_step: bool, epochs_changed: bool
) -> None:
    if max(getattr(each, "last_epoch", 0) for each in (scheduler, *getattr(scheduler, "_schedulers", ()))) > 0:
        raise InputError("to resume with another schedule, build the Distiller, its optimizer and its scheduler anew")
    if epochs_changed and not isinstance(scheduler, ReduceLROnPlateau) and state.scheduler is not None:
        before = state.fingerprints.get("scheduler", {})
        if before and all(before.get(key, value) == value for key, value in settings_of(scheduler).items()):
            logger.warning(
                "the run is resumed with another number of epochs, and %s has the settings of before: build a schedule that "
                "spans the training for the new number",
                type(scheduler).__name__,
            )
    losses = [record.get("val_loss") for record in state.history]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of")  # torch expects steps of the optimizer in between
        try:
            for index in range(state.step["index"] if by_step else state.epoch):
                step_scheduler(scheduler, None if by_step else losses[index])
        except ValueError as error:  # a one-cycle schedule that is too short
            raise InputError(
                f"the new schedule does not reach the place of the checkpoint: {first_line(error)}"
            ) from error


def _match_groups(optimizer: Optimizer, student: nn.Module, state: TrainState) -> None:
    """Add the groups that were added during training; refuse other parameters, which torch would match by position."""
    saved = state.parameters
    if saved is None:  # of an earlier version
        return
    own = names_by_group(optimizer, student)
    for index, (names, of_group) in enumerate(zip(saved, own, strict=False)):
        if names != of_group:
            wrong = next((a, b) for a, b in zip([*names, None], [*of_group, None], strict=False) if a != b)
            raise InputError(
                f"parameter group {index} of the optimizer holds other parameters: {wrong[0] or 'no more'} in the checkpoint, "
                f"{wrong[1] or 'no more'} now; build the optimizer over the same parameters in the same order"
            )
    if len(own) > len(saved):
        raise InputError(
            f"the optimizer has {len(own)} parameter groups and that of the checkpoint {len(saved)}: "
            "give it the groups of the start of the run; those added during training are restored"
        )
    name_of = _names(student)
    known = {name_of[id(parameter)]: parameter for parameter in student.parameters()}
    for index in range(len(own), len(saved)):
        absent = [name for name in saved[index] if name not in known]
        if absent:
            raise InputError(
                f"parameter group {index}, which was added during training, holds {absent[0] or 'a parameter'!r} that is not "
                "the student's: give the optimizer this group, with add_param_group, before the run is resumed"
            )
        added: dict[str, Any] = {"params": [known[name] for name in saved[index]]}
        optimizer.add_param_group(added)


def _names(student: nn.Module) -> dict[int, str]:
    """The name of each parameter without wrappers, by its identity."""
    plain = plain_names(student)
    return {id(parameter): plain.get(name, name) for name, parameter in student.named_parameters()}
