"""Central differences against forward mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from students import FORWARD, brute_force, clip_bound, make_case, relative_error
from torch import nn

from tgeokd.bilevel import ratio_gradient


@pytest.mark.parametrize(("optimizer", "clip", "accumulate"), [("momentum", "none", 1), ("adam", "bites", 3)])
@pytest.mark.parametrize("student", FORWARD)
def test_close_to_forward_mode(student, optimizer, clip, accumulate):
    case = make_case(student, optimizer, steps=3)
    settings = {"clip_norm": clip_bound(case, clip), "accumulate": accumulate}
    forward = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="forward")
    found = ratio_gradient(case.student, case.optimizer, **case.data, **settings, method="finite_difference")
    assert relative_error(found, forward) <= 1e-5
    assert not torch.equal(found, forward)


@pytest.mark.parametrize("rate", [1e-8, 1e-3, 1e3])
def test_the_step_width_does_not_depend_on_the_learning_rate(rate):
    # the direction D v is as short or as long as the learning rate; the parameters must move by the same share of their length
    case = make_case("mlp", lambda params: torch.optim.SGD(params, lr=rate))
    forward = ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    found = ratio_gradient(case.student, case.optimizer, **case.data, method="finite_difference")
    assert float((found - forward).norm() / forward.norm()) <= 1e-5


@pytest.mark.parametrize("method", ["forward", "finite_difference", "unrolled", "last_layer"])
def test_along_the_zero_direction_everything_is_zero(method):
    # validation inputs of zeros and no bias: no parameter changes the validation loss
    case = make_case(nn.Linear(5, 4, bias=False).double(), "momentum")
    case = case.with_(val_inputs=torch.zeros_like(case.val_inputs))
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert torch.equal(found, torch.zeros(6, dtype=torch.float64))


def test_from_parameters_that_are_all_zero():
    case = make_case("mlp", "sgd")
    with torch.no_grad():
        for param in case.student.parameters():
            param.zero_()
    forward = ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    found = ratio_gradient(case.student, case.optimizer, **case.data, method="finite_difference")
    assert relative_error(found, forward) <= 1e-5


def test_float32_is_good_to_three_digits():
    case = make_case("mlp", "momentum", steps=3)
    exact = ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    case.student.float()
    single = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.data.items()}
    optimizer = torch.optim.SGD(case.student.parameters(), lr=0.2, momentum=0.8, dampening=0.3)
    for new, old in zip(case.student.parameters(), case.optimizer.state.values(), strict=True):
        optimizer.state[new]["momentum_buffer"] = old["momentum_buffer"].float()
    found = ratio_gradient(case.student, optimizer, **single, method="finite_difference")
    assert found.dtype == torch.float32
    assert relative_error(found.double(), exact) <= 1e-3
    forward = ratio_gradient(case.student, optimizer, **single, method="forward")
    assert relative_error(forward.double(), exact) <= 1e-5


class WideBag(nn.Module):
    """An embedding of 40 tokens, five of which occur in training, as with the rare values of a table's column."""

    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(40, 6), nn.Linear(6, 4)

    def forward(self, tokens):
        return self.head(self.bag(tokens).tanh())


def test_rows_that_no_training_sample_uses_do_not_dominate():
    # Adam's derivative there is lr / eps, a million times that of the rows that matter, and the validation samples use them
    case = make_case(
        WideBag().double(), "adamw", steps=0, make_inputs=lambda n: torch.randint(5 if n == 6 else 40, (n, 3)), n=6
    )
    for _ in range(3):
        case.optimizer.zero_grad()
        F.cross_entropy(case.student(case.inputs), case.target).backward()
        case.optimizer.step()
    for group in case.optimizer.param_groups:
        group["eps"] = 1e-8
    case.optimizer.zero_grad()
    found = ratio_gradient(case.student, case.optimizer, **case.data, method="finite_difference")
    # 6e-7 where these rows count, and 0.3 in float32
    assert relative_error(found, brute_force(case)) <= 1e-8
