"""The hypergradient against unrolling and against a brute force through the real optimizer's step."""

from __future__ import annotations

import itertools

import pytest
import torch
from students import (
    BEYOND_FORWARD,
    FORWARD,
    OPTIMIZERS,
    brute_force,
    clip_bound,
    held_out_loss_after_step,
    make_case,
    relative_error,
)
from torch import nn

from tgeokd.bilevel import ratio_gradient

CLIPS = ("none", "bites", "loose")
SETTINGS = tuple(itertools.product(CLIPS, (1, 3), (0, 3)))  # clip, accumulate, steps before


@pytest.mark.parametrize("steps", [0, 3], ids=["first_step", "after_3_steps"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_forward_equals_unrolling(optimizer, clip, accumulate, steps):
    case = make_case("mlp", optimizer, steps=steps)
    settings = {"clip_norm": clip_bound(case, clip), "accumulate": accumulate}
    forward = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="forward")
    unrolled = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="unrolled")
    assert relative_error(forward, unrolled) <= 1e-9


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "adamw"])
def test_first_step_of_adam_with_its_own_tiny_eps(optimizer):
    # the derivative lr eps / (|g| + eps)^2 is a difference of two numbers a million times larger
    case = make_case("mlp", optimizer, first_eps=1e-8)
    forward = ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    unrolled = ratio_gradient(case.student, case.optimizer, **case.data, method="unrolled")
    assert relative_error(forward, unrolled) <= 1e-9


def _subset():
    """Every student with every optimizer once; clipping, accumulation and the optimizer's state take turns."""
    turns = itertools.cycle(SETTINGS)
    for shift, student in enumerate(FORWARD):
        for optimizer in OPTIMIZERS:
            clip, accumulate, steps = next(turns)
            if optimizer == "maximize" and student not in ("mlp", "batch_norm_cnn"):
                continue
            yield pytest.param(
                student, optimizer, clip, accumulate, steps, id=f"{student}-{optimizer}-{clip}-{accumulate}-{steps}"
            )
        for _ in range(shift % 5):  # so that no student always meets an optimizer in the same settings
            next(turns)


@pytest.mark.parametrize(("student", "optimizer", "clip", "accumulate", "steps"), _subset())
def test_forward_equals_unrolling_and_the_brute_force(student, optimizer, clip, accumulate, steps):
    case = make_case(student, optimizer, steps=steps)
    settings = {"clip_norm": clip_bound(case, clip), "accumulate": accumulate}
    forward = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="forward")
    unrolled = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="unrolled")
    assert relative_error(forward, unrolled) <= 1e-9
    assert relative_error(forward, brute_force(case, **settings)) <= 1e-6


@pytest.mark.parametrize("clip", ["none", "bites"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("student", BEYOND_FORWARD)
def test_finite_difference_equals_the_brute_force_beyond_forward_mode(student, optimizer, clip):
    case = make_case(student, optimizer, steps=3)
    settings = {"clip_norm": clip_bound(case, clip), "accumulate": 3}
    found = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="finite_difference")
    assert relative_error(found, brute_force(case, **settings)) <= 1e-4


@pytest.mark.parametrize("method", ["forward", "finite_difference", "unrolled"])
def test_sparse_gradients(method):
    case = make_case("sparse", "sgd", steps=2)
    found = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3, method=method)
    assert relative_error(found, brute_force(case, accumulate=3)) <= 1e-6


def test_clipping_that_bites_changes_the_hypergradient_and_a_loose_bound_does_not():
    case = make_case("mlp", "momentum", steps=3)

    def at(clip):
        return ratio_gradient(case.student, case.optimizer, **case.data, clip_norm=clip_bound(case, clip))

    assert torch.equal(at("none"), at("loose"))
    # not only the factor of 1/2 on the step: the part along the gradient is projected out
    assert relative_error(at("bites"), 0.5 * at("none")) > 1e-2


def test_micro_batches_of_unequal_size():
    case = make_case("mlp", "momentum", steps=3, n=5)
    whole = ratio_gradient(case.student, case.optimizer, **case.data)
    pieces = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=2)
    assert relative_error(pieces, whole) <= 1e-12


def test_batch_statistics_are_those_of_the_micro_batch():
    # with batch norm the cut matters, so the two must differ: a test above that passes for both would be blind
    case = make_case("batch_norm_cnn", "sgd")
    whole = ratio_gradient(case.student, case.optimizer, **case.data)
    pieces = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3)
    assert relative_error(pieces, whole) > 1e-2


@pytest.mark.parametrize("student", ["mixed", "encoder_layer", "stateful"])
def test_the_student_in_eval_mode_steps_in_eval_mode(student):
    # for the encoder layer this is the mode in which torch would take its fused path, beyond forward mode
    case = make_case(student, "momentum", steps=3)
    training = ratio_gradient(case.student, case.optimizer, **case.data)
    case.student.eval()
    found = ratio_gradient(case.student, case.optimizer, **case.data)
    assert relative_error(found, brute_force(case)) <= 1e-6
    assert relative_error(found, training) > 1e-2


def test_called_without_grad_mode():
    case = make_case("mlp", "momentum", steps=3)
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    with torch.no_grad():
        assert torch.equal(ratio_gradient(case.student, case.optimizer, **case.data), expected)


def test_stepping_alpha_down_its_hypergradient_lowers_the_held_out_loss():
    case = make_case("mlp", "momentum", steps=3)
    gradient = ratio_gradient(case.student, case.optimizer, **case.data)
    moved = case.with_(alpha=(case.alpha - 0.05 * gradient / gradient.abs().max()).clamp(0, 1))
    assert held_out_loss_after_step(moved) < held_out_loss_after_step(case)


class Reassigns(nn.Module):
    """Puts a new tensor in the place of its buffer, where others change the buffer in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.passes = self.passes + 1
        return self.head(x) * (1 + 0.3 * self.passes)


def test_a_buffer_that_the_forward_pass_assigns_anew():
    case = make_case(Reassigns().double(), "momentum", steps=1)
    found = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3)
    assert relative_error(found, brute_force(case, accumulate=3)) <= 1e-6
