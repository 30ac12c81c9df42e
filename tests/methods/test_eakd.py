"""`eakd` by hand, against scipy's entropies and the closed form of its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy
from small_training import refused

from tgeokd import EntropyAdaptiveKD, LossInputs

temperatures = st.floats(0.5, 8.0)


@st.composite
def problems(draw, bound=10.0):
    n, c = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    logits = arrays(np.float64, (n, c), elements=st.floats(-bound, bound))
    target = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits)), torch.from_numpy(target)


def weight_by_definition(student, teacher, entropy_temperature=3.0):
    """As the authors' code writes it, with the largest entropy of C classes: ``(H_T + H_T H_S / H_ub) / 2``."""
    h_s, h_t = (entropy(softmax(z.numpy() / entropy_temperature, axis=1), axis=1) for z in (student, teacher))
    return (h_t + h_t * h_s / math.log(student.shape[1])) / 2


def test_weight_by_hand():
    """Teacher (1/2, 1/2, 0, 0) and student (1/4, 1/4, 1/4, 1/4) at the temperature of the entropies."""
    teacher = 2.0 * torch.tensor([[0.0, 0.0, -1000.0, -1000.0]], dtype=torch.float64)
    inputs = LossInputs(torch.zeros(1, 4).double(), teacher, torch.tensor([0]), 4.0)
    weight = EntropyAdaptiveKD(entropy_temperature=2.0).sample_weight(inputs)
    assert weight.item() == pytest.approx(math.log(2) * (1 + 1) / 2)


def test_a_certain_student_halves_the_weight_and_a_certain_teacher_ends_it():
    unsure, certain = torch.zeros(1, 4), torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    method, y = EntropyAdaptiveKD(), torch.tensor([0])
    found = [
        method.sample_weight(LossInputs(student, teacher, y, 4.0)).item()
        for student, teacher in [(unsure, unsure), (certain, unsure), (unsure, certain), (certain, certain)]
    ]
    assert found == pytest.approx([math.log(4), math.log(4) / 2, 0.0, 0.0])


@given(problems(), temperatures)
def test_weight_is_its_definition_and_lies_in_its_range(problem, entropy_temperature):
    student, teacher, target = problem
    method = EntropyAdaptiveKD(entropy_temperature=entropy_temperature)
    found = method.sample_weight(LossInputs(student, teacher, target, 4.0)).numpy()
    np.testing.assert_allclose(
        found, weight_by_definition(student, teacher, entropy_temperature), rtol=1e-8, atol=1e-10
    )
    assert ((found >= 0) & (found <= math.log(student.shape[1]) + 1e-9)).all()


@given(problems(), temperatures, st.floats(0.01, 2), st.floats(0.01, 2))
def test_loss_is_the_weighted_sum_and_alpha_the_share(problem, tau, ce_weight, kd_weight):
    student, teacher, target = problem
    result = EntropyAdaptiveKD(ce_weight=ce_weight, kd_weight=kd_weight).loss(LossInputs(*problem, tau))
    w = weight_by_definition(student, teacher)
    kd = tau**2 * rel_entr(softmax(teacher.numpy() / tau, axis=1), softmax(student.numpy() / tau, axis=1)).sum(axis=1)
    ce = -np.take_along_axis(log_softmax(student.numpy(), axis=1), target.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(result.loss.numpy(), ce_weight * ce + kd_weight * w * kd, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.alpha.numpy(), kd_weight * w / (ce_weight + kd_weight * w), rtol=1e-8, atol=1e-10)


@given(problems(), temperatures)
def test_no_gradient_flows_through_the_weight(problem, tau):
    student, teacher, target = problem
    w = torch.from_numpy(weight_by_definition(student, teacher))[:, None]
    student.requires_grad_()
    result = EntropyAdaptiveKD().loss(LossInputs(student, teacher, target, tau))
    (found,) = torch.autograd.grad(result.loss.sum(), student)
    assert not result.alpha.requires_grad
    z = student.detach()
    label = z.softmax(dim=1) - torch.nn.functional.one_hot(target, z.shape[1])
    towards = tau * ((z / tau).softmax(dim=1) - (teacher / tau).softmax(dim=1))
    torch.testing.assert_close(found, 0.1 * label + 0.9 * w * towards, rtol=1e-7, atol=1e-9)


def test_the_defaults_are_those_of_the_authors():
    method = EntropyAdaptiveKD()
    assert (method.ce_weight, method.kd_weight, method.entropy_temperature) == (0.1, 0.9, 3.0)


def test_alpha_is_the_ratio_of_the_loss():
    torch.manual_seed(0)
    inputs = LossInputs(torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 4, 2]), 4.0)
    method = EntropyAdaptiveKD()
    assert torch.equal(method.alpha(inputs), method.loss(inputs).alpha)


@pytest.mark.parametrize("options", [{"ce_weight": 0.0}, {"kd_weight": 0.0}, {"ce_weight": 0.0, "kd_weight": 0.0}])
def test_a_term_without_weight_leaves_a_ratio_in_range(options):
    teacher = torch.tensor([[1e4, 0.0, 0.0], [1.0, 0.0, 0.0]])  # the first has no entropy
    result = EntropyAdaptiveKD(**options).loss(LossInputs(torch.zeros(2, 3), teacher, torch.tensor([0, 1]), 4.0))
    expected = [0.0, 1.0 if options == {"ce_weight": 0.0} else 0.0]
    assert result.alpha.tolist() == expected
    assert result.loss.isfinite().all()


@given(problems(bound=1e4), temperatures)
def test_loss_and_gradient_are_finite(problem, tau):
    student = problem[0].float().requires_grad_()
    result = EntropyAdaptiveKD().loss(LossInputs(student, problem[1].float(), problem[2], tau))
    (gradient,) = torch.autograd.grad(result.loss.sum(), student)
    assert result.loss.isfinite().all()
    assert gradient.isfinite().all()
    assert ((result.alpha >= 0) & (result.alpha <= 1)).all()


@pytest.mark.parametrize(
    "options", [{"ce_weight": -0.1}, {"kd_weight": float("nan")}, {"entropy_temperature": 0.0}], ids=str
)
def test_impossible_options_are_refused(options):
    with refused(next(iter(options))):
        EntropyAdaptiveKD(**options)


def test_it_needs_a_teacher():
    with refused("teacher"):
        EntropyAdaptiveKD().loss(LossInputs(torch.zeros(1, 3), None, torch.tensor([0]), 4.0))
