"""`dkd` by hand, against scipy, and by the identity that makes its parts the usual loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax
from small_training import refused

from tgeokd import DecoupledKD, LossInputs
from tgeokd.core.losses import decoupled_kd, kd_loss
from tgeokd.utils.errors import InputError

LN2, LN3 = math.log(2), math.log(3)


@st.composite
def problems(draw, bound=20.0, min_classes=2):
    n, c = draw(st.integers(1, 5)), draw(st.integers(min_classes, 6))
    logits = arrays(np.float64, (n, c), elements=st.floats(-bound, bound))
    target = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits)), torch.from_numpy(target)


temperatures = st.floats(0.5, 10.0)


def by_definition(student, teacher, target, tau):
    """Both parts from probabilities, sample by sample."""
    parts = []
    for s, t, y in zip(student.numpy() / tau, teacher.numpy() / tau, target.tolist(), strict=True):
        p_s, p_t = softmax(s), softmax(t)
        binary = rel_entr([p_t[y], np.delete(p_t, y).sum()], [p_s[y], np.delete(p_s, y).sum()]).sum()
        others = rel_entr(softmax(np.delete(t, y)), softmax(np.delete(s, y))).sum()
        parts.append((tau**2 * binary, tau**2 * others))
    return np.array(parts).T


def test_parts_by_hand():
    # student (1/2, 1/4, 1/4), teacher (1/4, 1/4, 1/2), label 0, temperature 1
    student = torch.tensor([[LN2, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, LN2]], dtype=torch.float64)
    tckd, nckd = decoupled_kd(student, teacher, torch.tensor([0]), 1.0)
    # (1/4, 3/4) from (1/2, 1/2); (1/3, 2/3) from (1/2, 1/2)
    assert tckd.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-12)
    assert nckd.item() == pytest.approx(math.log(2 / 3) / 3 + 2 / 3 * math.log(4 / 3), rel=1e-12)


@given(problems(bound=8.0), temperatures)
def test_parts_are_their_definition(problem, tau):
    found = torch.stack(decoupled_kd(*problem, tau))
    np.testing.assert_allclose(found.numpy(), by_definition(*problem, tau), rtol=1e-8, atol=1e-9)


@given(problems(), temperatures)
def test_the_parts_make_up_the_usual_loss(problem, tau):
    student, teacher, target = problem
    tckd, nckd = decoupled_kd(student, teacher, target, tau)
    of_others = 1 - (teacher / tau).softmax(-1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(tckd + of_others * nckd, kd_loss(student, teacher, tau), rtol=1e-8, atol=1e-9)


@given(problems(min_classes=2), temperatures)
def test_equal_logits_cost_nothing(problem, tau):
    student, _, target = problem
    for part in decoupled_kd(student, student.clone(), target, tau):
        assert torch.equal(part, torch.zeros_like(part))


def test_two_classes_have_no_second_part():
    torch.manual_seed(0)
    student, teacher, target = torch.randn(6, 2).double(), torch.randn(6, 2).double(), torch.arange(6) % 2
    tckd, nckd = decoupled_kd(student, teacher, target, 3.0)
    assert torch.equal(nckd, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(tckd, kd_loss(student, teacher, 3.0))


def test_wrong_shapes_and_temperatures_are_refused():
    with pytest.raises(InputError, match=r"\(1, 4\).*\(1, 3\)"):
        decoupled_kd(torch.zeros(1, 3), torch.zeros(1, 4), torch.tensor([0]), 1.0)
    with refused("temperature", 0.0):
        decoupled_kd(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0]), 0.0)


@given(problems(bound=8.0), temperatures)
def test_loss_is_the_label_term_plus_both_weighted_parts(problem, tau):
    student, teacher, target = problem
    result = DecoupledKD(alpha=0.5, beta=6.0, warmup=0).loss(LossInputs(student, teacher, target, tau))
    tckd, nckd = by_definition(*problem, tau)
    ce = -np.take_along_axis(log_softmax(student.numpy(), axis=1), target.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(result.loss.numpy(), ce + 0.5 * tckd + 6.0 * nckd, rtol=1e-8, atol=1e-8)
    assert result.alpha is None


@pytest.mark.parametrize("standardise", [False, True])
@given(problems(bound=1e4), temperatures)
def test_loss_and_gradient_are_finite(standardise, problem, tau):
    student, teacher, target = problem
    student = student.float().requires_grad_()
    method = DecoupledKD(warmup=0, standardise=standardise)
    loss = method.loss(LossInputs(student, teacher.float(), target, tau)).loss
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_gradient_is_the_numerical_one():
    torch.manual_seed(1)
    teacher, target = torch.randn(3, 4).double(), torch.tensor([0, 3, 1])
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for standardise in (False, True):
        method = DecoupledKD(warmup=0, standardise=standardise)
        assert torch.autograd.gradcheck(lambda z, m=method: m.loss(LossInputs(z, teacher, target, 2.0)).loss, student)


# ---- the warm-up


def ramp(epochs, **options):
    """The share of the distillation part that counts in each epoch, read off the loss."""
    torch.manual_seed(2)
    student, teacher, target = torch.randn(1, 3).double(), torch.randn(1, 3).double(), torch.tensor([1])
    full = LossInputs(student, teacher, target, 4.0)
    part = DecoupledKD(warmup=0).loss(full).loss - full.gt
    losses = [
        DecoupledKD(**options).loss(LossInputs(student, teacher, target, 4.0, e, epochs)).loss for e in range(epochs)
    ]
    return [((loss - full.gt) / part).item() for loss in losses]


def test_the_weight_rises_from_the_first_epoch_counted_as_one():
    assert ramp(6, warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_without_a_warmup_all_counts_from_the_start():
    assert ramp(3, warmup=0) == pytest.approx([1.0, 1.0, 1.0])


def test_by_default_a_twelfth_of_the_epochs():
    found = ramp(240)
    assert found[:20] == pytest.approx([(e + 1) / 20 for e in range(20)])
    assert found[20:] == pytest.approx([1.0] * 220)
    assert ramp(6) == pytest.approx([1.0] * 6)


# ---- standardised logits


def test_standardised_form_is_the_same_on_logits_standardised_by_hand():
    torch.manual_seed(3)
    student, teacher, target = (
        torch.randn(4, 5).double() * 7,
        torch.randn(4, 5).double() - 2,
        torch.tensor([0, 4, 2, 2]),
    )
    z, t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    tckd, nckd = by_definition(z, t, target, 2.0)
    inputs = LossInputs(student, teacher, target, 2.0)
    found = DecoupledKD(alpha=9.0, beta=81.0, warmup=0, standardise=True).loss(inputs).loss
    np.testing.assert_allclose(found - inputs.gt, 9.0 * tckd + 81.0 * nckd, rtol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha.*-1.0"),
        ({"beta": float("nan")}, "beta.*nan"),
        ({"warmup": -1}, "warmup.*-1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DecoupledKD(**options)


def test_it_needs_a_teacher():
    with refused("teacher"):
        DecoupledKD().loss(LossInputs(torch.zeros(1, 3), None, torch.tensor([0]), 4.0))
