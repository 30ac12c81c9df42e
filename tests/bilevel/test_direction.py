"""What stands for the held-out gradient: an average over steps, and what is left of it at a fixed length of the step."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from students import call, clip_bound, derivative, gt_of, kd_of, make_case, relative_error

from tgeokd.bilevel import Lookahead, OuterDirection
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.utils.errors import InputError


def answer(case, direction, *, method="forward", clip_norm=None):
    """The hypergradient of one step of a hand-written loop."""
    lookahead = Lookahead(
        case.student, case.optimizer, temperature=case.temperature, method=method, clip_norm=clip_norm
    )
    case.optimizer.zero_grad()
    logits = lookahead.forward(case.inputs, case.target, case.teacher_logits)
    kd, gt = kd_loss(logits, case.teacher_logits, case.temperature), gt_loss(logits, case.target)
    fuse(kd, gt, case.alpha).mean().backward()
    lookahead.step()
    case.optimizer.zero_grad(set_to_none=False)  # the answer must not depend on gradients that a loop may clear
    return lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha, direction=direction)


def at_fixed_length(case):
    """The held-out loss after a step of plain SGD that is as long as it is now whatever alpha is, by brute force."""
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
def test_at_fixed_length_it_is_the_derivative_after_a_step_that_keeps_its_length(student):
    case = make_case(student, "sgd")
    truth = at_fixed_length(case)
    assert relative_error(answer(case.copied(), None), truth) > 1e-2  # the length matters here
    assert relative_error(answer(case.copied(), OuterDirection(fixed_length=True)), truth) <= 1e-6


def test_the_head_alone_where_the_head_is_all_there_is():
    case = make_case("linear", "sgd")
    truth = at_fixed_length(case)
    assert relative_error(answer(case, OuterDirection(fixed_length=True), method="last_layer"), truth) <= 1e-6


def test_a_step_clipped_by_norm_keeps_its_length_anyway():
    case = make_case("mlp", "sgd")
    bound = clip_bound(case, "bites")
    plain = answer(case.copied(), None, clip_norm=bound)
    freed = answer(case.copied(), OuterDirection(fixed_length=True), clip_norm=bound)
    assert relative_error(freed, plain) <= 1e-5  # up to the 1e-6 in torch's clipping


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
    direction, average = OuterDirection(decay, fixed_length=True), OuterDirection(decay)
    for _ in range(3):
        v, g = ({n: torch.randn(3, generator=generator, dtype=torch.float64) for n in "ab"} for _ in range(2))
        found, mean = direction.at_fixed_length(v, g), average.averaged(g)
        assert abs(sum((found[n] * mean[n]).sum() for n in "ab")) < 1e-10
        # and nothing else is taken out of it
        taken = torch.cat([v[n] - found[n] for n in "ab"])
        along = torch.cat([mean[n] for n in "ab"])
        assert torch.linalg.matrix_rank(torch.stack([taken, along]), tol=1e-9) <= 1


def test_a_gradient_of_zeros_or_of_other_parameters_changes_nothing():
    v = {"w": torch.ones(2)}
    for gradient in ({"w": torch.zeros(2)}, {"other": torch.ones(2)}, {}):
        assert torch.equal(OuterDirection(fixed_length=True).at_fixed_length(v, gradient)["w"], v["w"])


def test_without_an_extension_it_is_the_plain_hypergradient():
    case = make_case("mlp", "adam", steps=2)
    assert torch.equal(answer(case.copied(), OuterDirection()), answer(case.copied(), None))


def test_its_memory_goes_round():
    first = OuterDirection(0.9, fixed_length=True)
    step = [{"w": torch.randn(3)} for _ in range(4)]
    first.at_fixed_length(first.averaged(step[0]), step[1])
    second = OuterDirection(0.9, fixed_length=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after = [d.at_fixed_length(d.averaged(step[2]), step[3])["w"] for d in (first, second)]
    assert torch.equal(*after)
    assert not torch.equal(after[0], step[2]["w"])


@pytest.mark.parametrize("average", [-0.1, 1.0, 2.0])
def test_an_impossible_average(average):
    with pytest.raises(InputError, match=r"average must lie in \[0, 1\)"):
        OuterDirection(average)


def test_the_slow_reference_does_without():
    case = make_case("mlp", "sgd")
    with pytest.raises(InputError, match="unrolled"):
        answer(case, OuterDirection(0.9), method="unrolled")
