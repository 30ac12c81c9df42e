"""The average of validation gradients over steps, and the projection of the direction to steps of constant length."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from students import call, clip_bound, derivative, gt_of, hypergradient, kd_of, make_case, relative_error

from tgeokd.bilevel import OuterDirection
from tgeokd.utils.errors import InputError


def projected():
    return OuterDirection(project_out_step_length=True)


def at_constant_length(case):
    """By brute force the derivative of the validation loss after a step of plain SGD whose length does not depend on alpha."""
    rate = case.optimizer.param_groups[0]["lr"]

    def gradient(model, alpha):
        model.zero_grad()
        z = call(model, case.inputs)
        kd, gt = kd_of(z, case.teacher_logits, case.temperature), gt_of(z, case.target)
        (alpha * kd + (1 - alpha) * gt).mean().backward()
        return torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))

    length = gradient(copy.deepcopy(case.student), case.alpha)

    def loss(i, shift):
        model, alpha = copy.deepcopy(case.student), case.alpha.clone()
        alpha[i] += shift
        own = gradient(model, alpha)
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * length / own * p.grad
            model.eval()
            return gt_of(call(model, case.val_inputs), case.val_target).mean().item()

    return torch.tensor(
        [derivative(lambda shift, i=i: loss(i, shift), 3e-5) for i in range(len(case.target))], dtype=torch.float64
    )


@pytest.mark.parametrize("student", ["mlp", "linear", "tied"])
def test_the_projection_gives_the_derivative_after_a_step_of_constant_length(student):
    case = make_case(student, "sgd")
    truth = at_constant_length(case)
    assert relative_error(hypergradient(case.copied()), truth) > 1e-2  # the length matters here
    assert relative_error(hypergradient(case.copied(), direction=projected()), truth) <= 1e-6


def test_last_layer_for_a_student_that_is_a_head_alone():
    case = make_case("linear", "sgd")
    truth = at_constant_length(case)
    assert relative_error(hypergradient(case, "last_layer", direction=projected()), truth) <= 1e-6


def test_a_step_clipped_by_norm_keeps_its_length_anyway():
    case = make_case("mlp", "sgd")
    bound = clip_bound(case, "bites")
    plain = hypergradient(case.copied(), clip_norm=bound)
    found = hypergradient(case.copied(), direction=projected(), clip_norm=bound)
    assert relative_error(found, plain) <= 1e-5  # up to the 1e-6 in torch's clipping


@given(
    decay=st.floats(0.0, 0.99),
    values=st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=2), min_size=1, max_size=6),
)
def test_the_average_weighs_the_past_by_powers_of_the_decay(decay, values):
    direction = OuterDirection(decay)
    for steps in range(1, len(values) + 1):
        found = direction.averaged({"w": torch.tensor(values[steps - 1], dtype=torch.float64)})["w"]
        weights = [decay ** (steps - 1 - k) for k in range(steps)]
        expected = sum(
            w * torch.tensor(v, dtype=torch.float64) for w, v in zip(weights, values[:steps], strict=True)
        ) / sum(weights)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10_000), decay=st.sampled_from([0.0, 0.5, 0.9]))
def test_the_direction_is_orthogonal_to_the_averaged_gradient(seed, decay):
    generator = torch.Generator().manual_seed(seed)
    direction, average = OuterDirection(decay, project_out_step_length=True), OuterDirection(decay)
    for _ in range(3):
        v, g = ({n: torch.randn(3, generator=generator, dtype=torch.float64) for n in "ab"} for _ in range(2))
        found, mean = direction.project(v, g), average.averaged(g)
        assert abs(sum((found[n] * mean[n]).sum() for n in "ab")) < 1e-10
        # and nothing else is taken out of it
        taken = torch.cat([v[n] - found[n] for n in "ab"])
        along = torch.cat([mean[n] for n in "ab"])
        assert torch.linalg.matrix_rank(torch.stack([taken, along]), tol=1e-9) <= 1


def test_a_gradient_of_zeros_or_of_other_parameters_changes_nothing():
    v = {"w": torch.ones(2)}
    for gradient in ({"w": torch.zeros(2)}, {"other": torch.ones(2)}, {}):
        assert torch.equal(projected().project(v, gradient)["w"], v["w"])


def test_without_an_extension_it_is_the_plain_hypergradient():
    case = make_case("mlp", "adam", steps=2)
    assert torch.equal(hypergradient(case.copied(), direction=OuterDirection()), hypergradient(case.copied()))


def test_state_dict_restores_the_averages():
    first = OuterDirection(0.9, project_out_step_length=True)
    step = [{"w": torch.randn(3)} for _ in range(4)]
    first.project(first.averaged(step[0]), step[1])
    second = OuterDirection(0.9, project_out_step_length=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after = [d.project(d.averaged(step[2]), step[3])["w"] for d in (first, second)]
    assert torch.equal(*after)
    assert not torch.equal(after[0], step[2]["w"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_ema_decay_out_of_range(decay):
    with pytest.raises(InputError, match=f"ema_decay .* {decay}"):
        OuterDirection(decay)


def test_unrolled_refuses_a_direction():
    case = make_case("mlp", "sgd")
    with pytest.raises(InputError, match="unrolled"):
        hypergradient(case, "unrolled", direction=OuterDirection(0.9))
