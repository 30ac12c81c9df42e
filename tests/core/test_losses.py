"""Losses against scipy, closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy

from tgeokd.core.losses import (
    fuse,
    gt_grad,
    gt_loss,
    kd_grad,
    kd_loss,
    logits_from_probs,
    regression_loss,
    soft_ce_loss,
    to_class_logits,
)
from tgeokd.utils.errors import InputError

LN2, LN3 = math.log(2), math.log(3)


@st.composite
def logit_pairs(draw, bound=20.0):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 6)))
    values = arrays(np.float64, shape, elements=st.floats(-bound, bound))
    return draw(values), draw(values)


temperatures = st.floats(0.5, 20.0)


def scipy_kd(student, teacher, tau):
    return tau**2 * rel_entr(softmax(teacher / tau, axis=-1), softmax(student / tau, axis=-1)).sum(axis=-1)


# ---- kd_loss


@given(logit_pairs(), temperatures)
def test_kd_is_scipys_relative_entropy_times_tau_squared(pair, tau):
    student, teacher = pair
    found = kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), tau)
    np.testing.assert_allclose(found.numpy(), scipy_kd(student, teacher, tau), rtol=1e-8, atol=1e-10)


def test_kd_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4) against (1/2, 1/2): KL = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
    expected = 0.5 * math.log(4 / 3)
    student, teacher = torch.tensor([[0.0, LN3]]), torch.tensor([[0.0, 0.0]])
    assert kd_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    # at temperature 2, logits twice as large are softened to the same distributions; the factor is 4
    assert kd_loss(2 * student, teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)
    # the divergence is of the teacher from the student, not the other way round: 1/4 ln(1/2) + 3/4 ln(3/2)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kd_loss(teacher, student, 1.0).item() == pytest.approx(reverse, rel=1e-6)


@given(logit_pairs(), temperatures)
def test_kd_is_exactly_zero_where_the_logits_are_equal_and_never_negative(pair, tau):
    student, teacher = map(torch.from_numpy, pair)
    assert torch.equal(kd_loss(student, student.clone(), tau), torch.zeros(len(student), dtype=torch.float64))
    assert (kd_loss(student, teacher, tau) >= -1e-9).all()


@given(logit_pairs(bound=8.0), temperatures, st.floats(-5, 5))
def test_kd_does_not_depend_on_a_constant_added_to_all_logits(pair, tau, shift):
    student, teacher = map(torch.from_numpy, pair)
    torch.testing.assert_close(
        kd_loss(student + shift, teacher - shift, tau), kd_loss(student, teacher, tau), rtol=1e-6, atol=1e-9
    )


@given(logit_pairs(), temperatures)
def test_gradient_of_kd_is_tau_times_the_difference_of_the_softened_distributions(pair, tau):
    student = torch.from_numpy(pair[0]).requires_grad_()
    kd_loss(student, torch.from_numpy(pair[1]), tau).sum().backward()
    expected = tau * (softmax(pair[0] / tau, axis=-1) - softmax(pair[1] / tau, axis=-1))
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-7, atol=1e-9)


@given(logit_pairs(), temperatures, st.data())
def test_gradients_equal_those_of_autograd(pair, tau, data):
    student, teacher = torch.from_numpy(pair[0]).requires_grad_(), torch.from_numpy(pair[1])
    count, classes = student.shape
    target = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    (of_kd,) = torch.autograd.grad(kd_loss(student, teacher, tau).sum(), student)
    (of_gt,) = torch.autograd.grad(gt_loss(student, target).sum(), student)
    torch.testing.assert_close(kd_grad(student.detach(), teacher, tau), of_kd, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gt_grad(student.detach(), target), of_gt, rtol=1e-8, atol=1e-10)


def test_gradient_scale_does_not_vanish_with_the_temperature():
    # Hinton et al. 2015, Eq. 4: for a high temperature the gradient is (centred z_s - centred z_t) / C
    student = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0, -1.0]], dtype=torch.float64)
    kd_loss(student, teacher, 1e4).sum().backward()
    difference = student.detach() - teacher
    torch.testing.assert_close(student.grad, (difference - difference.mean()) / 3, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_large_logits_stay_finite_with_their_gradients(size):
    student = torch.tensor([[size, -size, 0.0], [-size, size, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0], [-size, size, 0.0]])
    kd, gt = kd_loss(student, teacher, 1.0), gt_loss(student, torch.tensor([1, 1]))
    # the teacher gives class 1 all; the student is further off by 2 `size` nats on the first sample
    torch.testing.assert_close(kd, torch.tensor([2 * size, 0.0]))
    torch.testing.assert_close(gt, torch.tensor([2 * size, 0.0]))
    (kd + gt).sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("loss", [kd_loss, soft_ce_loss])
def test_temperature_must_be_positive(loss, tau):
    with pytest.raises(InputError, match=f"temperature.* {tau}"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), tau)


@pytest.mark.parametrize("loss", [kd_loss, soft_ce_loss])
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,)])
def test_shapes_that_differ_are_refused_rather_than_broadcast(loss, shape):
    with pytest.raises(InputError, match=r"teacher_logits .*\("):
        loss(torch.zeros(2, 3), torch.zeros(shape), 1.0)


# ---- soft_ce_loss, gt_loss, regression_loss, fuse


@given(logit_pairs(), temperatures)
def test_soft_ce_is_kd_plus_the_teachers_entropy(pair, tau):
    student, teacher = pair
    found = soft_ce_loss(torch.from_numpy(student), torch.from_numpy(teacher), tau).numpy()
    of_teacher = entropy(softmax(teacher / tau, axis=-1), axis=-1)
    np.testing.assert_allclose(found, scipy_kd(student, teacher, tau) / tau**2 + of_teacher, rtol=1e-8, atol=1e-10)


@given(logit_pairs(), st.data())
def test_gt_is_scipys_log_softmax_at_the_label(pair, data):
    logits = pair[0]
    count, classes = logits.shape
    target = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    found = gt_loss(torch.from_numpy(logits), torch.from_numpy(target)).numpy()
    np.testing.assert_allclose(found, -log_softmax(logits, axis=-1)[np.arange(count), target], rtol=1e-9, atol=1e-12)


def test_regression_is_the_mean_square_over_the_classes():
    student, teacher = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 4.0, 3.0], [3.0, 0.0, 0.0]]),
    )
    torch.testing.assert_close(regression_loss(student, teacher), torch.tensor([5 / 3, 3.0]))


def test_fuse_by_hand():
    kd, gt = torch.tensor([2.0, 4.0, 8.0]), torch.tensor([1.0, 10.0, 3.0])
    assert fuse(kd, gt, torch.tensor([0.0, 1.0, 0.25])).tolist() == [1.0, 4.0, 4.25]  # alpha weighs the teacher
    assert fuse(kd, gt, 0.5).tolist() == [1.5, 7.0, 5.5]


# ---- logits_from_probs


@given(logit_pairs())
def test_logits_from_probs_round_trip(pair):
    probs = softmax(pair[0], axis=-1)
    back = logits_from_probs(torch.from_numpy(probs)).softmax(dim=-1).numpy()
    np.testing.assert_allclose(back, probs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_probabilities_give_a_finite_divergence(dtype):
    teacher = logits_from_probs(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=dtype))
    assert teacher.isfinite().all()
    student = torch.tensor([[1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 4, 1 / 2]], dtype=torch.float64).log()
    # by hand: ln 4 for a teacher with one class, ln 2 for one with two equal classes
    kd = kd_loss(student, teacher.double(), 1.0)
    torch.testing.assert_close(kd, torch.tensor([2 * LN2, LN2], dtype=torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "wrong", [[2.0, -1.0, 0.0], [0.5, 0.6, 0.2], [0.2, 0.2, 0.2], [math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0]]
)
def test_rows_that_are_not_distributions_are_refused(wrong):
    with pytest.raises(InputError, match="row 1"):
        logits_from_probs(torch.tensor([[0.2, 0.3, 0.5], wrong]))


# ---- to_class_logits


def test_logits_of_several_columns_are_returned_as_they_are():
    logits = torch.randn(3, 4)
    assert to_class_logits(logits) is logits


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_logit_becomes_zero_and_z(shape):
    z = torch.tensor([-1.5, 0.0, 2.0]).reshape(shape)
    assert to_class_logits(z).tolist() == [[0.0, -1.5], [0.0, 0.0], [0.0, 2.0]]


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(-30, 30)), st.data())
def test_bce_with_logits_is_gt_of_the_two_class_logits(z, data):
    target = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(z), max_size=len(z))))
    logits = torch.from_numpy(z).requires_grad_()
    found = gt_loss(to_class_logits(logits), target)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, target.double(), reduction="none"))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().sigmoid() - target, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"\(N, C\).*\("):
        to_class_logits(torch.zeros(shape))
