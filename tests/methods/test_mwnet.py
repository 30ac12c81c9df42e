"""`mwnet`: V by hand, and its gradient against the paper's virtual step and against the student's real step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from small_training import (
    CLASSES,
    assert_same,
    by_layer,
    differ,
    distiller_of,
    loader,
    mlp,
    refused,
    validation_loader,
    weights,
)
from torch import nn
from torch.func import functional_call

from tgeokd import DistillationStep, LossInputs, MetaWeightNet
from tgeokd.methods.mwnet import WeightedLabelTerms
from tgeokd.training.survey import Survey

N, M, C, WIDTH = 6, 5, 4, 5


@pytest.fixture
def float64():
    """V is built in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Student(nn.Module):
    def __init__(self, dropout=0.3):
        super().__init__()
        self.body, self.dropout, self.head = nn.Linear(WIDTH, 8), nn.Dropout(dropout), nn.Linear(8, C)
        nn.init.normal_(self.head.weight)  # large enough for losses, and so weights, that differ

    def forward(self, x):
        return self.head(self.dropout(torch.tanh(self.body(x))))


def batch(n):
    return torch.randn(n, WIDTH), torch.randint(C, (n,))


def prepared(*, untrained=False, **options):
    method = MetaWeightNet(**options)
    method.prepare(C, None)
    if not untrained:
        nn.init.normal_(method.network.layers[-1][0], std=0.5)
        nn.init.normal_(method.network.layers[-1][1])
    return method


def inputs_of(logits, target, **options):
    return LossInputs(logits, None, target, 4.0, **options)


# ---- the loss


@st.composite
def problems(draw, bound=10.0):
    n = draw(st.integers(1, 6))
    logits = draw(arrays(np.float64, (n, C), elements=st.floats(-bound, bound)))
    target = draw(arrays(np.int64, n, elements=st.integers(0, C - 1)))
    return torch.from_numpy(logits), torch.from_numpy(target)


def by_definition(method, ce):
    """``V(ce_i)`` of each sample, sample by sample."""
    (w1, b1), (w2, b2) = ((w.numpy(), b.numpy()) for w, b in method.network.layers)
    values = []
    for loss in ce.tolist():
        z = w1[:, 0] * loss + b1
        values.append(expit(w2[0] @ np.where(z > 0, z, 0.01 * z) + b2[0]))
    return np.array(values)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalise", [False, True])
@given(problem=problems())
def test_loss_is_the_weighted_cross_entropy(normalise, problem):
    logits, target = problem
    torch.manual_seed(0)
    method = prepared(normalise=normalise, hidden=7)
    result = method.loss(inputs_of(logits, target))
    ce = F.cross_entropy(logits, target, reduction="none")
    expected = by_definition(method, ce)
    if normalise:
        expected = expected / expected.mean()
    np.testing.assert_allclose(result.weight.detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.loss.numpy(), expected * ce.numpy(), rtol=1e-6, atol=1e-9)
    assert result.alpha is None


@pytest.mark.parametrize(("normalise", "weight"), [(False, 0.5), (True, 1.0)])
def test_all_samples_weigh_the_same_before_anything_is_learned(normalise, weight):
    torch.manual_seed(0)
    logits, target = 10 * torch.randn(50, C), torch.randint(C, (50,))
    result = prepared(untrained=True, normalise=normalise).loss(inputs_of(logits, target))
    assert torch.equal(result.weight, torch.full((50,), weight))
    torch.testing.assert_close(result.loss, weight * F.cross_entropy(logits, target, reduction="none"))


@given(problems())
def test_normalised_weights_have_mean_one(problem):
    torch.manual_seed(0)
    weight = prepared().loss(inputs_of(*problem)).weight
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    assert (weight >= 0).all()


@pytest.mark.parametrize("normalise", [False, True])
def test_weights_that_underflow_leave_a_finite_loss(normalise):
    method = prepared(untrained=True, normalise=normalise)
    method.network.layers[-1][1].fill_(-1e4)
    result = method.loss(inputs_of(torch.randn(3, C), torch.tensor([0, 1, 2])))
    assert torch.equal(result.loss, torch.zeros(3))


@pytest.mark.parametrize("learn", [False, True])
def test_no_gradient_reaches_the_student_through_the_weights_nor_v_through_the_loss(learn):
    torch.manual_seed(0)
    method, logits, target = prepared(), torch.randn(N, C, requires_grad=True), torch.randint(C, (N,))
    result = method.loss(inputs_of(logits, target, learn=learn))
    assert result.weight.requires_grad == learn
    result.loss.sum().backward()
    expected = logits.detach().softmax(dim=1) - F.one_hot(target, C)
    torch.testing.assert_close(logits.grad, result.weight.detach()[:, None] * expected)
    assert method.network.omega.grad is None


def test_terms_are_the_weighted_loss_and_its_derivative():
    torch.manual_seed(0)
    logits = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(C, (N,)), torch.rand(N).double()
    terms = WeightedLabelTerms(target)
    ce = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(terms.loss(logits, weight), weight * ce)
    (expected,) = torch.autograd.grad(ce.sum(), logits)
    torch.testing.assert_close(terms.weight_grad(logits), expected)
    torch.testing.assert_close(terms.first(2).weight_grad(logits[:2]), expected[:2])


# ---- the gradient of V


def train(method, student, optimizer, batches, validation, *, microbatches=1, clip_norm=None):
    """A loop written by hand: `microbatches` batches make a step."""
    state = method.state_dict()
    step = DistillationStep(student, optimizer, method, validation=validation, clip_norm=clip_norm)
    step.prepare(batches, survey_result=Survey(C))
    method.load_state_dict(state)  # the network of the test, not a new one
    for start in range(0, len(batches), microbatches):
        group = batches[start : start + microbatches]
        total = sum(len(target) for _, target in group)
        optimizer.zero_grad()
        for item in group:
            (step.loss(item) * len(item[1]) / total).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
        optimizer.step()
    step.close()


def v_gradient(method, student, optimizer, batches, validation, clip_norm=None):
    """What the first step leaves on V; the arguments stay as they are."""
    method, student, optimizer = copy.deepcopy((method, student, optimizer))
    state = torch.get_rng_state()
    train(method, student, optimizer, batches, [validation], microbatches=len(batches), clip_norm=clip_norm)
    torch.set_rng_state(state)
    return method.network.omega.grad


def v_of(theta, ce, hidden):
    """V written out as a function of all its weights, so that autograd can differentiate it."""
    w1, b1, w2, b2 = theta.split([hidden, hidden, hidden, 1])
    return (F.leaky_relu(ce[:, None] * w1 + b1, 0.01) @ w2 + b2).sigmoid()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hypergradient", ["forward", "unrolled", "finite_difference"])
@pytest.mark.parametrize("normalise", [False, True])
def test_gradient_is_that_of_the_virtual_step_of_the_authors(normalise, hypergradient):
    """The authors' procedure by second-order autograd. With plain SGD, their virtual step is the real one.

    Their validation loss goes through the student in training mode; here it has no layer where that matters.
    """
    torch.manual_seed(1)
    hidden, lr = 7, 0.3
    method = prepared(normalise=normalise, hidden=hidden, hypergradient=hypergradient)
    student, (x, y), (val_x, val_y) = Student(dropout=0.0), batch(N), batch(M)
    found = v_gradient(method, student, torch.optim.SGD(student.parameters(), lr), [(x, y)], (val_x, val_y))

    theta = method.network.omega.detach().clone().requires_grad_()
    params = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    cost = F.cross_entropy(functional_call(student, params, x), y, reduction="none")
    v = v_of(theta, cost.detach(), hidden)
    loss = (v / v.sum() * cost).sum() if normalise else (v * cost).sum() / len(cost)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    moved = {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
    (expected,) = torch.autograd.grad(F.cross_entropy(functional_call(student, moved, val_x), val_y), theta)

    assert expected.abs().max() > 1e-4
    tolerance = 1e-5 if hypergradient == "finite_difference" else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def brute_force(method, student, optimizer, batches, validation, clip_norm, direction, h=1e-4):
    """The validation loss after the student's real step, by differences along a direction in V's weights."""

    def validation_loss(shift):
        model, moved = copy.deepcopy((student, optimizer))
        theta = method.network.omega.detach() + shift * direction
        state = torch.get_rng_state()
        moved.zero_grad()
        total = sum(len(y) for _, y in batches)
        for x, y in batches:
            ce = F.cross_entropy(model(x), y, reduction="none")
            v = v_of(theta, ce.detach(), method.hidden)
            weight = v / v.mean() if method.normalise else v
            ((weight * ce).sum() / total).backward()
        if clip_norm is not None:
            assert nn.utils.clip_grad_norm_(model.parameters(), clip_norm) > clip_norm
        moved.step()
        torch.set_rng_state(state)
        model.eval()
        with torch.no_grad():
            return F.cross_entropy(model(validation[0]), validation[1]).item()

    near, far = (validation_loss(k * h) - validation_loss(-k * h) for k in (1, 2))
    return (8 * near - far) / (12 * h)


def sgd(params):
    return torch.optim.SGD(params, lr=0.3, momentum=0.8, weight_decay=0.01)


def adam(params):
    return torch.optim.Adam(params, lr=0.05, eps=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("make_optimizer", "count", "clip_norm"),
    [
        pytest.param(sgd, 1, None, id="sgd"),
        pytest.param(adam, 1, None, id="adam"),
        pytest.param(sgd, 3, 0.1, id="sgd-clipped-accumulated"),
        pytest.param(adam, 2, 0.1, id="adam-clipped-accumulated"),
    ],
)
def test_gradient_is_the_effect_of_v_on_the_validation_loss_through_the_real_step(
    make_optimizer, count, clip_norm, normalise
):
    torch.manual_seed(3)
    method = prepared(normalise=normalise, hidden=6, hypergradient="forward")
    student = Student()
    optimizer = make_optimizer(student.parameters())
    F.cross_entropy(student(torch.randn(N, WIDTH)), torch.randint(C, (N,))).backward()
    optimizer.step()  # so that the optimizer has a state
    args = (method, student, optimizer, [batch(N // count) for _ in range(count)], batch(M), clip_norm)
    found = v_gradient(*args)
    own = torch.Generator().manual_seed(0)  # the global stream must stay where the step's dropout mask begins
    for _ in range(3):
        direction = torch.randn(found.shape, generator=own)
        truth = brute_force(*args, direction)
        assert abs(truth) > 1e-6
        assert (found * direction).sum().item() == pytest.approx(truth, rel=1e-6)


def test_the_layer_below_a_last_layer_of_zeros_gets_nothing_at_first():
    torch.manual_seed(0)
    student = Student()
    method = prepared(untrained=True, normalise=False)
    gradient = v_gradient(method, student, sgd(student.parameters()), [batch(N)], batch(M))
    found = by_layer(method.network, gradient)
    assert found["weight1"].abs().max() > 0
    assert torch.equal(found["weight0"], torch.zeros_like(found["weight0"]))


# ---- learning


@pytest.mark.parametrize("normalise", [False, True])
def test_wrong_labels_get_smaller_weights(normalise):
    """Two labels of five are those of the next class, which shows in their loss; the validation labels are right."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(C, WIDTH)

    def samples(n, *, noise):
        truth = torch.randint(C, (n,))
        wrong = torch.rand(n) < noise
        return centres[truth] + 0.3 * torch.randn(n, WIDTH), torch.where(wrong, (truth + 1) % C, truth), wrong

    method = prepared(untrained=True, normalise=normalise, lr=0.003, hypergradient="exact")
    student = Student(dropout=0.0)
    batches = [samples(32, noise=0.4)[:2] for _ in range(300)]
    train(method, student, torch.optim.SGD(student.parameters(), lr=0.2), batches, [samples(32, noise=0.0)[:2]])
    x, label, wrong = samples(200, noise=0.4)
    weight = method.loss(inputs_of(student(x), label, learn=False)).weight
    assert weight[wrong].mean() < 0.5 * weight[~wrong].mean()


def test_v_learns_in_every_kth_step_alone():
    torch.manual_seed(0)
    student, moved = Student(), []
    method = MetaWeightNet(update_interval=3)
    step = DistillationStep(student, torch.optim.SGD(student.parameters(), 0.1), method, validation=[batch(M)])
    batches = [batch(N) for _ in range(7)]
    step.prepare(batches, survey_result=Survey(C))
    for item in batches:
        before = method.network.omega.detach().clone()
        step.optimizer.zero_grad()
        step.loss(item).backward()
        step.optimizer.step()
        moved.append(not torch.equal(before, method.network.omega))
    assert moved == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("outer", ["holdout", "union", "train"])
def test_a_run_learns_without_a_teacher_from_each_source(outer):
    distiller = distiller_of(MetaWeightNet(outer=outer), student=mlp(1, norm=True))
    start = weights(distiller.student)
    history = distiller.fit(loader(), validation_loader(), epochs=2)
    assert differ(start, weights(distiller.student))
    assert distiller.method.network.layers[-1][0].abs().max() > 0
    assert history[-1]["alpha_mean"] is None


def test_no_weight_that_learns_is_plain_training():
    """With a learning rate of 0 every weight stays 1."""
    runs = []
    for method in (MetaWeightNet(lr=0.0), "ce"):
        distiller = distiller_of(method)
        distiller.fit(loader(), validation_loader(), epochs=2)
        runs.append(weights(distiller.student))
    assert_same(*runs)


# ---- state and options


def test_state_is_restored():
    torch.manual_seed(0)
    trained, other = prepared(untrained=True), MetaWeightNet()
    student = Student()
    train(trained, student, torch.optim.SGD(student.parameters(), 0.1), [batch(N) for _ in range(3)], [batch(M)])
    other.prepare(C, None)
    other.load_state_dict(copy.deepcopy(trained.state_dict()))
    torch.testing.assert_close(other.state_dict(), trained.state_dict(), rtol=0, atol=0)
    inputs = inputs_of(torch.randn(N, C), torch.randint(C, (N,)))
    assert torch.equal(other.loss(inputs).weight, trained.loss(inputs).weight)


def test_it_must_be_prepared():
    with pytest.raises(RuntimeError, match="prepare"):
        MetaWeightNet().loss(inputs_of(torch.zeros(1, CLASSES), torch.tensor([0])))


def test_the_defaults():
    method = MetaWeightNet()
    assert not method.needs_teacher
    assert (method.outer, method.hidden, method.lr, method.weight_decay) == ("holdout", 100, 1e-3, 1e-4)
    assert method.normalise


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 0},
        {"outer": "unoin"},
        {"outer_batch_size": 0},
        {"hypergradient": "backward"},
        {"update_interval": 0},
        {"lr": -1.0},
        {"weight_decay": float("nan")},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options):
    with refused(*options.values()):
        MetaWeightNet(**options)
