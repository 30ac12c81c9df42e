"""`rld` by hand, against its definition class by class, and by its identity with `dkd` where the teacher is right."""

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

from tgeokd import DecoupledKD, LossInputs, RefinedLogitKD

LN2 = math.log(2)
temperatures = st.floats(0.5, 10.0)


@st.composite
def problems(draw, bound=8.0):
    n, c = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    # whole numbers too, so that the teacher has ties
    values = st.one_of(st.floats(-bound, bound), st.integers(-2, 2).map(float))
    logits = arrays(np.float64, (n, c), elements=values)
    target = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits)), torch.from_numpy(target)


def by_definition(student, teacher, target, tau):
    """Label term and both parts from probabilities, sample by sample."""
    rows = []
    for s, t, y in zip(student.numpy(), teacher.numpy(), target.tolist(), strict=True):
        top, own = softmax(t / tau).max(), softmax(s / tau)[y]
        rest = np.delete(softmax(s / tau), y).sum()
        others = np.delete(softmax(t / tau), t.argmax()).sum()
        confidence = rel_entr([top, others], [own, rest]).sum()
        below = [c for c in range(len(t)) if t[c] < t[y]]
        correlation = rel_entr(softmax(t[below] / tau), softmax(s[below] / tau)).sum() if below else 0.0
        rows.append((-log_softmax(s)[y], tau**2 * confidence, tau**2 * correlation))
    return np.array(rows).T


def loss(student, teacher, target, tau=1.0, **options):
    options = {"warmup": 0, **options}
    return RefinedLogitKD(**options).loss(LossInputs(student, teacher, target, tau)).loss


def part(name, student, teacher, target, tau):
    """One part alone, without the label term."""
    weights = {"alpha": 0.0, "beta": 0.0}
    return loss(student, teacher, target, tau, **(weights | {name: 1.0})) - loss(
        student, teacher, target, tau, **weights
    )


# ---- values


def test_parts_by_hand():
    # student (1/2, 1/4, 1/8, 1/8); teacher (1/4, 1/2, 1/6, 1/12); the label 0 is the teacher's second choice
    student = torch.tensor([[2.0, 1.0, 0.0, 0.0]], dtype=torch.float64) * LN2
    teacher = torch.tensor([[3.0, 6.0, 2.0, 1.0]], dtype=torch.float64).log()
    args = (student, teacher, torch.tensor([0]), 1.0)
    # the teacher's largest probability is 1/2, and so is the student's probability of the label
    assert part("alpha", *args).item() == pytest.approx(0.0, abs=1e-12)
    # classes 2 and 3 remain: (2/3, 1/3) from (1/2, 1/2)
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert part("beta", *args).item() == pytest.approx(expected, rel=1e-12)
    assert loss(*args).item() == pytest.approx(LN2 + 8 * expected, rel=1e-12)


@given(problems(), temperatures, st.floats(0, 5), st.floats(0, 10))
def test_loss_is_its_definition(problem, tau, alpha, beta):
    ce, confidence, correlation = by_definition(*problem, tau)
    found = loss(*problem, tau, alpha=alpha, beta=beta)
    np.testing.assert_allclose(found.numpy(), ce + alpha * confidence + beta * correlation, rtol=1e-8, atol=1e-8)


@given(problems(), temperatures)
def test_a_teacher_that_is_right_makes_it_decoupled_kd(problem, tau):
    student, teacher, target = problem
    best = teacher.max(dim=1, keepdim=True).values + 0.5
    teacher = teacher.scatter(1, target[:, None], best)
    inputs = LossInputs(student, teacher, target, tau)
    dkd = DecoupledKD(alpha=2.0, beta=3.0, warmup=0).loss(inputs).loss
    torch.testing.assert_close(loss(student, teacher, target, tau, alpha=2.0, beta=3.0), dkd, rtol=1e-8, atol=1e-9)


def test_a_teacher_that_is_wrong_does_not():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5).double(), torch.randn(8, 5).double()
    target = teacher.argmin(dim=1)
    dkd = DecoupledKD(warmup=0).loss(LossInputs(student, teacher, target, 4.0)).loss
    assert (dkd - loss(student, teacher, target, 4.0)).abs().min() > 0.1


# ---- which classes are masked


def masked_classes(teacher, label):
    """The classes whose student logits do not matter to MCD."""
    torch.manual_seed(0)
    student = torch.randn(1, len(teacher), dtype=torch.float64, requires_grad=True)
    value = part("beta", student, torch.tensor([teacher], dtype=torch.float64), torch.tensor([label]), 2.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return {c for c, g in enumerate(gradient[0].tolist()) if abs(g) < 1e-12}


@pytest.mark.parametrize(
    ("teacher", "label", "masked"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], 0, {0}),  # the label alone
        ([5.0, 4.0, 3.0, 2.0, 1.0], 2, {0, 1, 2}),  # the label and all above it
        ([4.0, 4.0, 3.0, 2.0, 1.0], 0, {0, 1}),  # a class level with the label too
        ([5.0, 4.0, 3.0, 2.0, 1.0], 3, {0, 1, 2, 3, 4}),  # one class remains: nothing to compare
        ([5.0, 4.0, 3.0, 2.0, 1.0], 4, {0, 1, 2, 3, 4}),  # no class remains
        ([2.0, 2.0, 2.0, 2.0, 2.0], 1, {0, 1, 2, 3, 4}),  # a teacher that knows nothing
    ],
)
def test_the_label_and_what_the_teacher_ranks_at_or_above_it_are_masked(teacher, label, masked):
    assert masked_classes(teacher, label) == masked


def test_no_class_left_costs_exactly_nothing():
    student = torch.randn(2, 4, requires_grad=True)
    teacher = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    value = part("beta", student, teacher, torch.tensor([3, 0]), 4.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.tolist() == [0.0, 0.0]
    assert torch.equal(gradient, torch.zeros(2, 4))


def test_the_wrong_class_of_the_teacher_is_not_taught():
    """A teacher that is certain of another class: `kd` pulls the student there, SCD pulls it to the label."""
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    teacher, target = torch.tensor([[0.0, 9.0, 1.0]]).double(), torch.tensor([0])
    (gradient,) = torch.autograd.grad(part("alpha", student, teacher, target, 1.0).sum(), student)
    assert gradient[0, 0] < 0
    assert (gradient[0, 1:] > 0).all()


# ---- gradients


@given(problems(), temperatures)
def test_gradient_of_the_confidence_by_the_label_s_logit(problem, tau):
    """``tau (p^S_y - max p^T)``, as the paper derives it (there at temperature 1)."""
    student, teacher, target = problem
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(part("alpha", student, teacher, target, tau).sum(), student)
    own = (student.detach() / tau).softmax(dim=1).gather(1, target[:, None])
    top = (teacher / tau).softmax(dim=1).max(dim=1, keepdim=True).values
    torch.testing.assert_close(gradient.gather(1, target[:, None]), tau * (own - top), rtol=1e-7, atol=1e-9)


def test_gradient_is_the_numerical_one():
    torch.manual_seed(3)
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher, target = torch.randn(6, 5).double(), torch.tensor([0, 1, 4, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, target, 3.0), student)


@given(problems(bound=1e4), temperatures)
def test_loss_and_gradient_are_finite(problem, tau):
    student = problem[0].float().requires_grad_()
    found = loss(student, problem[1].float(), problem[2], tau)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


# ---- options


@pytest.mark.parametrize(
    ("options", "epoch", "epochs", "weight"),
    [
        ({}, 0, 240, 1 / 20),  # the authors' 20 of 240, counted from 1
        ({}, 18, 240, 19 / 20),
        ({}, 19, 240, 1.0),
        ({}, 200, 240, 1.0),
        ({}, 0, 10, 1.0),
        ({"warmup": 1}, 0, 100, 1.0),
        ({"warmup": 4}, 1, 100, 0.5),
        ({"warmup": 0}, 0, 240, 1.0),
    ],
)
def test_both_parts_grow_over_the_first_epochs(options, epoch, epochs, weight):
    torch.manual_seed(0)
    student, teacher, target = torch.randn(4, 5).double(), torch.randn(4, 5).double(), torch.tensor([0, 1, 4, 2])
    inputs = LossInputs(student, teacher, target, 4.0, epoch, epochs)
    result = RefinedLogitKD(**options).loss(inputs)
    ce, confidence, correlation = (torch.from_numpy(x) for x in by_definition(student, teacher, target, 4.0))
    torch.testing.assert_close(result.loss, ce + weight * (confidence + 8 * correlation))
    assert result.alpha is None


def test_it_needs_epochs_and_a_teacher():
    assert RefinedLogitKD.needs_epochs
    with refused("teacher"):
        RefinedLogitKD().loss(LossInputs(torch.zeros(1, 3), None, torch.tensor([0]), 4.0))


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"beta": float("nan")}, {"warmup": -1}])
def test_impossible_options_are_refused(options):
    with refused(next(iter(options))):
        RefinedLogitKD(**options)
