"""`wls` by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import log_softmax, softmax

from tgeokd import LossInputs, WeightedSoftLabelKD
from tgeokd.utils.errors import InputError

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def by_hand():
    """Student (1/4, 3/4), teacher (1/2, 1/2), label 0: CE_s = ln 4, CE_t = ln 2, so w = 1 - exp(-2)."""
    student = torch.tensor([[0.0, LN3]], dtype=torch.float64, requires_grad=True)
    return LossInputs(student, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]), temperature=1.0)


W = 1 - math.exp(-2)


def test_weight_by_hand():
    found = WeightedSoftLabelKD().alpha(by_hand())
    assert found.tolist() == pytest.approx([W], rel=1e-6)
    assert not found.requires_grad


def test_a_teacher_that_is_sure_of_the_label_is_trusted_fully_and_one_that_is_sure_against_it_not_at_all():
    student = torch.zeros(2, 2, dtype=torch.float64)
    teacher = torch.tensor([[100.0, -100.0], [-1e6, 1e6]], dtype=torch.float64)
    found = WeightedSoftLabelKD().alpha(LossInputs(student, teacher, torch.tensor([0, 0]), temperature=1.0))
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_convex_by_hand():
    inputs = by_hand()
    result = WeightedSoftLabelKD(form="convex").loss(inputs)
    kd = 0.5 * math.log(4 / 3)
    assert result.loss.item() == pytest.approx(W * kd + (1 - W) * LN4, rel=1e-6)
    assert result.alpha.item() == pytest.approx(W, rel=1e-6)


def test_original_by_hand():
    inputs = by_hand()
    result = WeightedSoftLabelKD(form="original", scale=2.5).loss(inputs)
    soft_ce = 0.5 * LN4 + 0.5 * math.log(4 / 3)  # no entropy of the teacher is taken off
    assert result.loss.item() == pytest.approx(LN4 + 2.5 * W * soft_ce, rel=1e-6)
    assert result.alpha.item() == pytest.approx(2.5 * W / (1 + 2.5 * W), rel=1e-6)


def test_original_is_softened_and_scaled_by_tau_squared_but_its_weight_is_not():
    student, teacher, tau = [[0.3, -1.0, 2.0]], [[1.0, 0.0, -2.0]], 3.0
    inputs = LossInputs(torch.tensor(student).double(), torch.tensor(teacher).double(), torch.tensor([1]), tau)
    ce_s, ce_t = -log_softmax(student, axis=1)[0, 1], -log_softmax(teacher, axis=1)[0, 1]
    weight = 1 - math.exp(-ce_s / (ce_t + 1e-7))
    soft_student, soft_teacher = [[x / tau for x in student[0]]], [[x / tau for x in teacher[0]]]
    soft_ce = -(softmax(soft_teacher, axis=1) * log_softmax(soft_student, axis=1)).sum()
    expected = ce_s + 2.25 * tau**2 * weight * soft_ce
    assert WeightedSoftLabelKD().loss(inputs).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["original", "convex"])
def test_no_gradient_goes_through_the_weight(form):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3).double()
    target, tau = torch.tensor([0, 1, 2, 0, 1]), 2.0
    method = WeightedSoftLabelKD(form=form)
    inputs = LossInputs(student, teacher, target, tau)
    weight = method.alpha(inputs).numpy()[:, None]
    (found,) = torch.autograd.grad(method.loss(inputs).loss.sum(), student)
    z, onehot = student.detach().numpy(), torch.eye(3)[target].numpy()
    of_gt = softmax(z, axis=1) - onehot
    of_kd = tau * (softmax(z / tau, axis=1) - softmax(teacher.numpy() / tau, axis=1))
    expected = of_gt + 2.25 * weight * of_kd if form == "original" else weight * of_kd + (1 - weight) * of_gt
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "linear"}, "form.*'linear'"),
        ({"scale": 0.0}, "scale.*0.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        WeightedSoftLabelKD(**options)
