"""The classifier head's part of the hypergradient, in closed form."""

from __future__ import annotations

import pytest
import torch
from students import WIDTH, C, brute_force, clip_bound, estimate, make_case, recorded_step, recorder_of, relative_error
from torch import nn

from tgeokd.bilevel import ratio_gradient
from tgeokd.bilevel.estimators.last_layer import NoHeadError
from tgeokd.utils.errors import InputError


def both(case, **settings):
    found = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="last_layer")
    exact = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="forward")
    return found, exact


def below_frozen(bias=True):
    body = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(0.3)).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(6, C, bias=bias)).double()


@pytest.mark.parametrize(("clip", "accumulate"), [("none", 1), ("bites", 3), ("loose", 1)])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "amsgrad"])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_for_a_single_linear_layer(bias, optimizer, steps, clip, accumulate):
    case = make_case(nn.Linear(WIDTH, C, bias=bias).double(), optimizer, steps=steps)
    found, exact = both(case, clip_norm=clip_bound(case, clip), accumulate=accumulate)
    assert relative_error(found, exact) <= 1e-10


@pytest.mark.parametrize(("clip", "accumulate"), [("none", 1), ("bites", 3)])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_where_everything_below_the_head_is_frozen(bias, optimizer, clip, accumulate):
    case = make_case(below_frozen(bias), optimizer, steps=3)
    found, exact = both(case, clip_norm=clip_bound(case, clip), accumulate=accumulate)
    assert relative_error(found, exact) <= 1e-10


def test_equals_the_brute_force_for_a_single_linear_layer():
    case = make_case("linear", "adam", steps=3)
    bound = clip_bound(case, "bites")
    found, _ = both(case, clip_norm=bound)
    assert relative_error(found, brute_force(case, clip_norm=bound)) <= 1e-6


def test_is_the_heads_block_where_more_is_trained():
    """The exact gradient minus the part below the head, which a rate of 0 for the head isolates for plain SGD."""
    case = make_case("dropout", "sgd")
    found, exact = both(case)
    assert relative_error(found, exact) > 1e-2
    body = [{"params": case.student.body.parameters()}, {"params": case.student.head.parameters(), "lr": 0.0}]
    # v is taken after the step, so both optimizers must land on the same parameters: only to first order in the rate
    tiny = 1e-7
    for group in case.optimizer.param_groups:
        group["lr"] = tiny
    found, exact = both(case)
    below = ratio_gradient(case.student, torch.optim.SGD(body, lr=tiny), **case.data)
    assert relative_error(found / tiny, (exact - below) / tiny) <= 1e-5


class OneLogit(nn.Module):
    """A binary student: one logit per sample, of shape (N, 1) or (N,)."""

    def __init__(self, squeeze):
        super().__init__()
        self.head, self.squeeze = nn.Linear(WIDTH, 1), squeeze

    def forward(self, x):
        z = self.head(x)
        return z.squeeze(-1) if self.squeeze else z


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_one_logit(optimizer, squeeze):
    case = make_case(OneLogit(squeeze).double(), optimizer, steps=3, classes=2)
    found, exact = both(case, accumulate=2)
    assert relative_error(found, exact) <= 1e-10
    assert relative_error(found, brute_force(case, accumulate=2)) <= 1e-6


def test_frozen_bias():
    case = make_case("linear", "momentum")
    case.student.bias.requires_grad_(False)
    found, exact = both(case)
    assert relative_error(found, exact) <= 1e-10


class Scaled(nn.Module):
    """Logits that are not straight out of a linear layer, though one of the same shape is there."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, C)

    def forward(self, x):
        return 2 * self.head(x)


class NoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, C))

    def forward(self, x):
        return x @ self.weight


class HeadTwice(nn.Module):
    """The logits are the output of a linear layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, C)

    def forward(self, x):
        return self.head(x + self.head(x).sum(dim=-1, keepdim=True))


class FrozenHead(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, C).requires_grad_(False))


@pytest.mark.parametrize("student", [Scaled, NoLinear, HeadTwice, FrozenHead])
def test_a_student_without_a_head_is_refused_with_the_way_out(student):
    case = make_case(student().double(), "sgd")
    with pytest.raises(NoHeadError, match=r"last_layer.*'exact'"):
        ratio_gradient(case.student, case.optimizer, **case.data, method="last_layer")
    recorder = recorder_of(case, "last_layer")
    with pytest.raises(NoHeadError), recorder.forward_pass(case.inputs):
        pytest.fail("the forward pass must not run")


class TwoHeads(nn.Module):
    """A linear layer of the logits' shape runs after the head: the head is the one whose output is returned."""

    def __init__(self):
        super().__init__()
        self.other, self.head = nn.Linear(WIDTH, C), nn.Linear(WIDTH, C)

    def forward(self, x):
        z = self.head(x)
        self.other(x)
        return z


def test_the_head_is_found_by_its_output_not_by_its_place():
    case = make_case(TwoHeads().double(), "momentum")
    found, exact = both(case)
    assert relative_error(found, exact) <= 1e-10


def test_a_head_frozen_after_the_step_is_refused():
    case = make_case("mlp", "sgd")
    recorder = recorder_of(case, "last_layer")
    record = recorded_step(case, recorder)
    case.student[2].requires_grad_(False)
    with pytest.raises(InputError, match="last_layer"):
        estimate(case, recorder, record)


def test_a_head_that_the_optimizer_does_not_hold_gives_zero():
    # zero is the truth: the head does not move, whatever alpha is
    case = make_case("mlp", lambda params: torch.optim.SGD(list(params)[:2], lr=0.1))
    found = ratio_gradient(case.student, case.optimizer, **case.data, method="last_layer")
    assert torch.equal(found, torch.zeros_like(found))


def test_nothing_of_the_forward_pass_is_kept_but_the_features():
    case = make_case("batch_norm_cnn", "sgd")
    recorder = recorder_of(case, "last_layer")
    record = recorded_step(case, recorder, accumulate=2)
    assert record.params == {}
    for microbatch in record.microbatches:
        assert microbatch.inputs is None
        assert microbatch.buffers == {}
        assert microbatch.features.shape == (3, 12)
    assert set(record.gradient) == {"head.weight", "head.bias"}
