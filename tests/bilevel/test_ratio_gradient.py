"""The pure function against unrolling and against a brute force through the real optimizer's step."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from students import (
    FORWARD,
    NO_FORWARD_MODE,
    OPTIMIZERS,
    WIDTH,
    C,
    brute_force,
    clip_bound,
    make_case,
    relative_error,
    validation_loss_after_step,
)
from torch import nn
from torch.optim import SGD, AdamW

from tgeokd.bilevel import ratio_gradient

CLIPS = ("none", "bites", "loose")
EXACT = ("forward", "finite_difference", "unrolled")
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
    """Every student with every other optimizer; clipping, accumulation and the optimizer's state take turns."""
    turns = itertools.cycle(SETTINGS)
    for shift, student in enumerate(FORWARD):
        for optimizer in list(OPTIMIZERS)[shift % 2 :: 2]:
            clip, accumulate, steps = next(turns)
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


@pytest.mark.parametrize(("optimizer", "clip"), [("nesterov", "none"), ("adam", "bites"), ("adamw", "none")])
@pytest.mark.parametrize("student", NO_FORWARD_MODE)
def test_finite_difference_equals_the_brute_force_without_forward_mode(student, optimizer, clip):
    case = make_case(student, optimizer, steps=3)
    settings = {"clip_norm": clip_bound(case, clip), "accumulate": 3}
    found = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="finite_difference")
    assert relative_error(found, brute_force(case, **settings)) <= 1e-4


@pytest.mark.parametrize("method", EXACT)
def test_sparse_gradients(method):
    case = make_case("sparse", "sgd", steps=2)
    found = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3, method=method)
    assert relative_error(found, brute_force(case, accumulate=3)) <= 1e-6


def test_clipping_that_bites_changes_the_hypergradient_and_a_loose_bound_does_not():
    case = make_case("mlp", "momentum", steps=3)

    def at(clip):
        return ratio_gradient(case.student, case.optimizer, **case.data, clip_norm=clip_bound(case, clip))

    assert torch.equal(at("none"), at("loose"))
    # not only the factor 1/2 of the step: the component along the gradient is projected out
    assert relative_error(at("bites"), 0.5 * at("none")) > 1e-2


def test_microbatches_of_unequal_size():
    case = make_case("mlp", "momentum", steps=3, n=5)
    whole = ratio_gradient(case.student, case.optimizer, **case.data)
    pieces = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=2)
    assert relative_error(pieces, whole) <= 1e-12


def test_batch_statistics_are_those_of_the_microbatch():
    # with batch norm the cut into microbatches matters: the two must differ, or the tests above would not notice a wrong one
    case = make_case("batch_norm_cnn", "sgd")
    whole = ratio_gradient(case.student, case.optimizer, **case.data)
    pieces = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3)
    assert relative_error(pieces, whole) > 1e-2


@pytest.mark.parametrize("student", ["mixed", "encoder_layer", "stateful"])
def test_the_student_in_eval_mode_steps_in_eval_mode(student):
    # in this mode torch would use the encoder layer's fused path, which has no forward-mode derivative
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


def test_stepping_alpha_down_its_hypergradient_lowers_the_validation_loss():
    case = make_case("mlp", "momentum", steps=3)
    gradient = ratio_gradient(case.student, case.optimizer, **case.data)
    moved = case.with_(alpha=(case.alpha - 0.05 * gradient / gradient.abs().max()).clamp(0, 1))
    assert validation_loss_after_step(moved) < validation_loss_after_step(case)


class Reassigns(nn.Module):
    """Assigns a new tensor to its buffer, where others change the buffer in place."""

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


# ---- parameter groups


def two_groups(params):
    first, second, *rest = params
    return AdamW(
        [{"params": [first, second], "lr": 0.2, "betas": (0.5, 0.9)}, {"params": rest}], lr=0.01, weight_decay=0.3
    )


def half_of_them(params):
    """The other half of the student is trainable too, by another optimizer."""
    return SGD(list(params)[::2], lr=0.3, momentum=0.8)


@pytest.mark.parametrize("clip", ["none", "bites"])
@pytest.mark.parametrize("optimizer", [two_groups, half_of_them])
@pytest.mark.parametrize("method", EXACT)
def test_groups_with_rates_of_their_own_and_parameters_outside(method, optimizer, clip):
    case = make_case("mlp", optimizer, steps=3)
    bound = clip_bound(case, clip)
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=method, clip_norm=bound)
    assert relative_error(found, brute_force(case, clip_norm=bound)) <= 1e-6


# ---- inputs and outputs


class TwoInputs(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.left, self.right, self.head, self.wrap = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, C), wrap

    def forward(self, left, right):
        logits = self.head(torch.tanh(self.left(left) + self.right(right)))
        return SimpleNamespace(logits=logits, loss=None) if self.wrap else logits


def pairs(n):
    return torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)


def mappings(n):
    left, right = pairs(n)
    return {"right": right, "left": left}


@pytest.mark.parametrize("method", [*EXACT, "last_layer"])
@pytest.mark.parametrize("wrap", [False, True], ids=["tensor", "object_with_logits"])
@pytest.mark.parametrize("make_inputs", [pairs, mappings])
def test_tuples_mappings_and_outputs_with_logits(make_inputs, wrap, method):
    case = make_case(TwoInputs(wrap).double(), "momentum", steps=2, make_inputs=make_inputs)
    if method == "last_layer":
        case.student.left.requires_grad_(False)
        case.student.right.requires_grad_(False)
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=method, accumulate=2)
    assert relative_error(found, brute_force(case, accumulate=2)) <= 1e-6


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_is_the_second_of_two(squeeze):
    body = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 1), *([nn.Flatten(0)] if squeeze else []))
    case = make_case(body.double(), "adam", steps=2, classes=2)
    found = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3)
    assert relative_error(found, brute_force(case, accumulate=3)) <= 1e-6
