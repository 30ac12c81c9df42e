"""`gce` by hand, against its definition, its limits and the bounds that its authors prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from small_training import refused

from tgeokd import CrossEntropy, GeneralizedCrossEntropy, LossInputs

exponents = st.floats(0.05, 1.0)


@st.composite
def problems(draw, bound=10.0):
    n, c = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    logits = draw(arrays(np.float64, (n, c), elements=st.floats(-bound, bound)))
    target = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(logits), torch.from_numpy(target)


def loss(q, logits, target):
    return GeneralizedCrossEntropy(q=q).loss(LossInputs(logits, None, target, temperature=4.0)).loss


def test_loss_by_hand():
    # probabilities 1/4 and 3/4; p^(1/2) = 1/2 and sqrt(3)/2
    logits = torch.tensor([[0.0, math.log(3)]] * 2, dtype=torch.float64)
    found = loss(0.5, logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([1.0, 2 - math.sqrt(3)], rel=1e-12)


@given(problems(), exponents)
def test_loss_is_its_definition(problem, q):
    logits, target = problem
    p = np.take_along_axis(softmax(logits.numpy(), axis=1), target.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(loss(q, logits, target).numpy(), (1 - p**q) / q, rtol=1e-8, atol=1e-12)


@given(problems())
def test_a_small_q_is_cross_entropy(problem):
    logits, target = problem
    ce = CrossEntropy().loss(LossInputs(logits, None, target, temperature=4.0)).loss
    q = 1e-6  # the next term of the series is q ce^2 / 2
    torch.testing.assert_close(loss(q, logits, target), ce, rtol=1e-6 * 20, atol=1e-12)


@given(problems())
def test_q_of_one_is_half_the_absolute_error(problem):
    logits, target = problem
    one_hot = torch.nn.functional.one_hot(target, logits.shape[1])
    error = (logits.softmax(dim=1) - one_hot).abs().sum(dim=1)
    torch.testing.assert_close(loss(1.0, logits, target), error / 2, rtol=1e-9, atol=1e-12)


@given(problems(), exponents)
def test_gradient_is_that_of_cross_entropy_times_a_power_of_the_probability(problem, q):
    logits, target = problem
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss(q, logits, target).sum(), logits)
    probs = logits.detach().softmax(dim=1)
    own = probs.gather(1, target[:, None])
    expected = own**q * (probs - torch.nn.functional.one_hot(target, logits.shape[1]))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


@given(problems(), exponents)
def test_the_sum_over_all_labels_lies_in_the_bounds_of_the_paper(problem, q):
    """A loss whose sum over the labels is constant is robust to symmetric noise; ``L_q`` is within these bounds of it."""
    logits, _ = problem
    n, c = logits.shape
    total = sum(loss(q, logits, torch.full((n,), label)) for label in range(c))
    assert (total >= (c - c ** (1 - q)) / q - 1e-9).all()
    assert (total <= (c - 1) / q + 1e-9).all()


@given(problems(bound=1e4), st.floats(1e-4, 1.0))
def test_loss_and_gradient_are_finite_and_bounded(problem, q):
    logits = problem[0].float().requires_grad_()
    found = loss(q, logits, problem[1])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert ((found >= 0) & (found <= 1.0001 / q)).all()
    assert gradient.isfinite().all()
    assert (gradient.abs() <= 1).all()


def test_gradient_is_the_numerical_one():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(0.7, z, torch.tensor([0, 1, 4, 2])), logits)


def test_it_needs_no_teacher_and_has_no_ratio():
    assert not GeneralizedCrossEntropy.needs_teacher
    assert GeneralizedCrossEntropy().outer is None
    assert GeneralizedCrossEntropy().q == 0.7
    inputs = LossInputs(torch.zeros(1, 3), None, torch.tensor([0]), 1.0)
    assert GeneralizedCrossEntropy().loss(inputs).alpha is None


@pytest.mark.parametrize("q", [0.0, -0.5, 1.01, float("nan")])
def test_an_impossible_q_is_refused(q):
    with refused("q", q):
        GeneralizedCrossEntropy(q=q)
