"""What happens where a step makes the loss, the gradient or the student NaN or infinite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from tgeokd.bilevel.functional import trainable
from tgeokd.training.blame import ADVICE
from tgeokd.utils.errors import DivergenceError, InputError

if TYPE_CHECKING:
    from tgeokd.training.step import DistillationStep

logger = logging.getLogger(__name__)

OnDivergence = Literal["stop", "skip", "rollback"]
MAX_SKIPPED = 20  # steps of a run
MAX_ROLLBACKS = 3  # of a run
SLOWER = 0.5  # factor of the learning rate with each return to a checkpoint
RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # of a parameter group


class Divergence:
    """Counts what was done about divergence, and stops at a limit.

    Attributes:
        how: ``stop`` raises the error; ``skip`` leaves out the step, at most :data:`MAX_SKIPPED` times; ``rollback`` returns
            to the last checkpoint with half the learning rate, at most :data:`MAX_ROLLBACKS` times.
        skipped, rollbacks: in the run so far.
    """

    def __init__(self, how: OnDivergence) -> None:
        if how not in get_args(OnDivergence):
            raise InputError(f"on_divergence must be one of {', '.join(get_args(OnDivergence))}, not {how!r}")
        self.how = how
        self.skipped = self.rollbacks = 0

    @contextmanager
    def step(self, step: DistillationStep) -> Iterator[None]:
        """Take a step in this block; where it diverges and is left out, it leaves no trace in the student."""
        buffers = [(each, each.clone()) for each in step.student.buffers()] if self.how == "skip" else []
        try:
            yield
        except DivergenceError as error:
            self.skipped = self._again("skip", self.skipped, MAX_SKIPPED, "the step is skipped", error)
            for buffer, before in buffers:  # the averages of batch norm, which saw the batch
                buffer.copy_(before)
            step.forget()

    def roll_back(self, error: DivergenceError) -> None:
        """Count a return to a checkpoint; raises the error where there is none, or there were too many."""
        what = "back to the last checkpoint with half the learning rate"
        self.rollbacks = self._again("rollback", self.rollbacks, MAX_ROLLBACKS, what, error)

    def _again(self, how: OnDivergence, done: int, most: int, what: str, error: DivergenceError) -> int:
        """Log that it is done once more and return how often; raises the error where it was not chosen, or too often."""
        if self.how != how:
            raise error
        if done == most:
            raise DivergenceError(f"{error}; on_divergence={how} was followed {most} times before") from error
        logger.warning("%s (%d of at most %d): %s", what, done + 1, most, error)
        return done + 1

    def check_gradient(self, step: DistillationStep) -> None:
        """Raise a DivergenceError for a gradient that is not finite, unless that is not asked for: it waits for the device."""
        if self.how != "stop":
            gradients = [param.grad for param in trainable(step.student).values() if param.grad is not None]
            if not _finite(gradients):
                raise DivergenceError(f"the gradient of step {step.index} is NaN or infinite; {ADVICE}")


def check_finite(student: nn.Module, step: int) -> None:
    """Raise a DivergenceError where a parameter or a buffer of the student, before step ``step``, is not finite."""
    if not _finite([value for value in chain(student.parameters(), student.buffers()) if value.is_floating_point()]):
        raise DivergenceError(f"the student's parameters are NaN or infinite before step {step}; {ADVICE}")


def slow_down(optimizer: Optimizer, scheduler: Any, times: int) -> None:
    """Multiply all learning rates of an optimizer and its schedule by :data:`SLOWER`, several times."""
    factor = SLOWER**times
    for group in optimizer.param_groups:
        for name in RATES:
            if name in group:
                group[name] *= factor
    for each in _schedules(scheduler):
        for name in ("base_lrs", "_last_lr", "min_lrs"):
            if hasattr(each, name):
                setattr(each, name, [factor * rate for rate in getattr(each, name)])


def _schedules(scheduler: Any) -> Iterator[Any]:
    if scheduler is not None:
        yield scheduler
        for inner in getattr(scheduler, "_schedulers", ()):
            yield from _schedules(inner)


def _finite(tensors: list[torch.Tensor]) -> bool:
    return not tensors or bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all())
