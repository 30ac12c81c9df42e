"""The guard that stops training at losses that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from tgeokd.methods.base import LossInputs
from tgeokd.training.finite_guard import FiniteGuard
from tgeokd.utils.errors import DivergenceError, InputError

CPU = torch.device("cpu")
GOOD, BAD = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, math.nan]])
IDS = torch.tensor([70, 71])


def check(guard, step, *, student=GOOD, teacher=GOOD, loss=None, ids=IDS):
    """As a step does it: what is wrong with the logits is wrong with the loss."""

    def explain():
        raise Explained

    losses = (student + (0 if teacher is None else teacher)).sum(dim=1) if loss is None else loss
    given = LossInputs(student, teacher, torch.zeros(len(losses), dtype=torch.int64), 4.0, ids=ids)
    guard.check(losses, losses.detach().sum(), given, step, explain)


class Explained(Exception):
    """What the caller of the guard raises."""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_cpu_is_checked_at_once(bad):
    guard = FiniteGuard(CPU)
    check(guard, 0)
    check(guard, 1, student=torch.tensor([[1e30, -1e30]]), teacher=torch.zeros(1, 2))
    with pytest.raises(Explained):
        check(guard, 2, student=torch.tensor([[0.0, bad]], requires_grad=True), teacher=torch.zeros(1, 2))
    guard.read()  # nothing is left over


# ---- on an accelerator, where reading would wait for the device


def deferred(interval):
    guard = FiniteGuard(CPU, interval)
    guard.immediate = False  # as on an accelerator
    return guard


def test_the_first_bad_step_and_its_sample_are_noted():
    guard = deferred(100)
    for step in range(8):
        check(guard, step, student=BAD if step in (3, 5) else GOOD, ids=IDS + step)
    with pytest.raises(DivergenceError, match=r"student's logits of sample 74 .*step 3"):
        guard.read()


def test_step_zero_is_noted_too():
    guard = deferred(100)
    check(guard, 0, teacher=BAD)
    check(guard, 1, student=BAD)
    with pytest.raises(InputError, match=r"teacher's logits of sample 71 .*step 0"):
        guard.read()


def test_notes_are_read_at_intervals():
    guard = deferred(10)
    for step in range(9):
        check(guard, step, teacher=BAD if step == 4 else GOOD)
    with pytest.raises(InputError, match=r"teacher.* step 4"):
        check(guard, 9)


def test_a_sample_without_an_id_is_named_by_its_row():
    guard = deferred(100)
    check(guard, 2, student=BAD, teacher=None, ids=None)
    with pytest.raises(DivergenceError, match=r"student's logits of row 1 .*step 2"):
        guard.read()


def test_a_bad_loss_of_good_logits_is_noted():
    guard = deferred(100)
    check(guard, 2, loss=torch.tensor([math.inf, 1.0]))
    with pytest.raises(DivergenceError, match=r"the loss of sample 70 .*logits are not .*step 2"):
        guard.read()


def test_finite_values_pass():
    guard = deferred(3)
    for step in range(10):
        check(guard, step)
    guard.read()
