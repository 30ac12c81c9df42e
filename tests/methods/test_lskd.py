"""`lskd` by hand and against plain torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_training import refused

from tgeokd import LogitStandardizationKD, LossInputs
from tgeokd.core.losses import standardise


def logits(shape=(4, 5), bound=10.0):
    return arrays(np.float64, shape, elements=st.floats(-bound, bound)).map(torch.from_numpy)


TARGET = torch.tensor([0, 1, 4, 2])


# ---- standardise


def test_standardised_by_hand():
    # mean 2, unbiased deviation sqrt((1 + 0 + 1) / 2) = 1
    found = standardise(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


def test_two_classes_keep_only_the_order():
    found = standardise(torch.tensor([[0.0, 5.0], [3.0, -1.0]], dtype=torch.float64))
    half = math.sqrt(0.5)  # the unbiased deviation of (a, b) is |a - b| / sqrt 2
    torch.testing.assert_close(found, torch.tensor([[-half, half], [half, -half]]).double(), atol=1e-6, rtol=0)


def test_equal_logits_become_zeros_with_a_finite_gradient():
    z = torch.full((2, 3), 7.0, requires_grad=True)
    found = standardise(z)
    assert torch.equal(found, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(found.square().sum(), z)
    assert gradient.isfinite().all()


@given(logits())
def test_standardised_logits_have_mean_zero_and_deviation_one(z):
    found = standardise(z)
    torch.testing.assert_close(found.mean(1), torch.zeros(4).double(), atol=1e-6, rtol=0)
    spread = z.std(1)
    torch.testing.assert_close(found.std(1), spread / (spread + 1e-7), rtol=1e-6, atol=1e-9)


# ---- the method


def by_torch(student, teacher, target, tau, ce_weight=0.1, kd_weight=9.0):
    z, t = ((x - x.mean(1, keepdim=True)) / (x.std(1, unbiased=True, keepdim=True) + 1e-7) for x in (student, teacher))
    kl = F.kl_div(F.log_softmax(z / tau, 1), F.softmax(t / tau, 1), reduction="none").sum(1)
    return ce_weight * F.cross_entropy(student, target, reduction="none") + kd_weight * tau**2 * kl


@given(logits(), logits(), st.floats(0.5, 8.0))
def test_loss_is_the_weighted_sum_on_standardised_logits(student, teacher, tau):
    result = LogitStandardizationKD().loss(LossInputs(student, teacher, TARGET, tau))
    torch.testing.assert_close(result.loss, by_torch(student, teacher, TARGET, tau), rtol=1e-8, atol=1e-9)
    assert result.alpha is None


def test_weights_reach_their_terms():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    inputs = LossInputs(student, teacher, TARGET, 2.0)
    found = LogitStandardizationKD(ce_weight=0.7, kd_weight=3.0).loss(inputs).loss
    torch.testing.assert_close(found, by_torch(student, teacher, TARGET, 2.0, 0.7, 3.0))
    torch.testing.assert_close(LogitStandardizationKD(ce_weight=1.0, kd_weight=0.0).loss(inputs).loss, inputs.gt)


def test_the_scale_and_the_offset_of_the_teachers_logits_do_not_matter():
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    method = LogitStandardizationKD()
    plain = method.loss(LossInputs(student, teacher, TARGET, 2.0)).loss
    moved = method.loss(LossInputs(student, 30 * teacher - 12, TARGET, 2.0)).loss
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-6)
    turned = method.loss(LossInputs(student, -teacher, TARGET, 2.0)).loss
    assert (turned - plain).abs().max() > 0.1


def test_a_student_that_has_the_teachers_relations_pays_the_label_alone():
    torch.manual_seed(2)
    teacher = torch.randn(4, 5).double()
    inputs = LossInputs(5 * teacher + 1, teacher, TARGET, 2.0)
    found = LogitStandardizationKD().loss(inputs).loss
    torch.testing.assert_close(found, 0.1 * inputs.gt, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
@given(data=st.data(), tau=st.floats(0.5, 8.0))
def test_loss_and_gradient_are_finite(classes, data, tau):
    student = data.draw(logits((4, classes), bound=1e4)).float().requires_grad_()
    teacher = data.draw(logits((4, classes), bound=1e4)).float()
    target = TARGET.clamp(max=classes - 1)
    loss = LogitStandardizationKD().loss(LossInputs(student, teacher, target, tau)).loss
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_gradient_is_the_numerical_one():
    torch.manual_seed(3)
    student, teacher = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 5).double()
    method = LogitStandardizationKD()
    assert torch.autograd.gradcheck(lambda z: method.loss(LossInputs(z, teacher, TARGET, 2.0)).loss, student)


@pytest.mark.parametrize("options", [{"ce_weight": -0.1}, {"kd_weight": float("nan")}])
def test_impossible_options_are_refused(options):
    with refused(next(iter(options))):
        LogitStandardizationKD(**options)


def test_it_needs_a_teacher():
    with refused("teacher"):
        LogitStandardizationKD().loss(LossInputs(torch.zeros(1, 3), None, torch.tensor([0]), 4.0))
