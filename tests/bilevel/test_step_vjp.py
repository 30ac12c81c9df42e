"""The transposed Jacobian of a step against autograd through the functional step."""

from __future__ import annotations

import pytest
import torch
from students import OPTIMIZERS, clip_bound, gradient_norm, make_case, plain_step
from torch import nn
from torch.optim import SGD, Adam

from tgeokd.bilevel.functional import trainable
from tgeokd.bilevel.step_vjp import Clip, StepVJP, functional_step, optimizer_slots, step_diagonal, student_slots
from tgeokd.utils.errors import InputError


def at_the_step(case):
    """Slots, values and unclipped gradients of the coming step."""
    trial = case.copied()
    trial.optimizer.step = lambda: None
    plain_step(trial)
    gradients = {name: p.grad for name, p in trial.student.named_parameters()}
    values = {name: p.detach() for name, p in case.student.named_parameters()}
    return optimizer_slots(case.optimizer, trainable(case.student)), values, gradients


@pytest.mark.parametrize("clip", ["none", "bites", "loose"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_autograd_through_clipping_and_step(optimizer, clip):
    case = make_case("mlp", optimizer, steps=2)
    bound = clip_bound(case, clip)
    slots, values, gradients = at_the_step(case)
    vector = {name: torch.randn_like(value) for name, value in values.items()}

    free = {name: g.clone().requires_grad_() for name, g in gradients.items()}
    used = free
    if bound is not None:
        norm = torch.cat([g.flatten() for g in free.values()]).norm()
        used = {name: g * (bound / (norm + 1e-6)).clamp(max=1.0) for name, g in free.items()}
    after = functional_step(slots, values, used)
    product = sum(((values[name] - after[name]) * vector[name]).sum() for name in values)
    expected = dict(zip(free, torch.autograd.grad(product, list(free.values())), strict=True))

    clipped = {name: g.detach() for name, g in used.items()}
    record = None if bound is None else Clip(bound, torch.tensor(gradient_norm(case), dtype=torch.float64))
    found = StepVJP(step_diagonal(slots, values, clipped), record, clipped if record else {})(vector)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_functional_step_is_that_of_the_optimizer(optimizer):
    case = make_case("mlp", optimizer, steps=2)
    slots, values, gradients = at_the_step(case)
    found = functional_step(slots, values, gradients)
    plain_step(case)
    for name, param in case.student.named_parameters():
        torch.testing.assert_close(found[name], param.detach(), rtol=1e-10, atol=1e-12)


def test_entries_and_parameters_without_a_gradient_have_no_part_in_it():
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    optimizer = Adam(student.parameters(), lr=0.1)
    own = trainable(student)
    gradient = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = step_diagonal(optimizer_slots(optimizer, own), own, {"0.weight": gradient})
    assert list(found) == ["0.weight"]
    assert torch.equal(found["0.weight"] == 0, gradient == 0)


def test_parameters_that_missed_a_step_keep_a_step_count_of_their_own():
    # Adam's small parameters are computed together, but only where their counts agree
    case = make_case("mlp", lambda params: Adam(params, lr=0.05), steps=2)
    case.student[0].weight.requires_grad_(False)
    plain_step(case)
    case.student[0].weight.requires_grad_(True)
    slots, values, gradients = at_the_step(case)
    together = step_diagonal(slots, values, gradients)
    for slot in slots:
        alone = step_diagonal([slot], values, gradients)[slot.name]
        torch.testing.assert_close(together[slot.name], alone, rtol=1e-14, atol=0)


def test_a_snapshot_does_not_follow_the_optimizer():
    case = make_case("mlp", "adam", steps=1)
    slots = [slot.snapshot() for slot in student_slots(case.student, case.optimizer)]
    before = [slot.state["exp_avg"].clone() for slot in slots]
    plain_step(case)
    case.optimizer.param_groups[0]["lr"] = 7.0
    assert all(torch.equal(slot.state["exp_avg"], b) for slot, b in zip(slots, before, strict=True))
    assert all(slot.group["lr"] == 0.05 for slot in slots)


def test_only_parameters_that_are_trained_and_held_by_the_optimizer_have_a_slot():
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    student[0].bias.requires_grad_(False)
    optimizer = SGD(student[0].parameters(), lr=0.1)
    assert [slot.name for slot in student_slots(student, optimizer)] == ["0.weight"]
    with pytest.raises(InputError, match="optimizer"):
        student_slots(nn.Linear(2, 2), optimizer)
    with pytest.raises(InputError, match="student"):
        student_slots(student.requires_grad_(False), optimizer)
