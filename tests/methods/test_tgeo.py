"""TGeo-KD: omega gets the true gradient of the validation loss, through the student's real step, and nothing else.

The authors' public code computes alpha without a gradient in the inner loop and back-propagates the outer loss through the
student alone, so omega never moves. Every test in the first part would fail for it.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_training import Samples, TableTeacher, by_layer, ratio_alone
from torch import nn

from tgeokd import DistillationStep, LossInputs, TGeoKD, VanillaKD
from tgeokd.training.survey import Survey

N, M, C, WIDTH, TAU = 6, 5, 4, 5, 2.5


@pytest.fixture
def float64():
    """Omega is built in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.dropout, self.head = nn.Linear(WIDTH, 8), nn.Dropout(0.3), nn.Linear(8, C)

    def forward(self, x):
        return self.head(self.dropout(torch.tanh(self.body(x))))


def batch(n):
    return Samples(torch.randn(n, WIDTH), torch.randint(C, (n,)), 2 * torch.randn(n, C))


def means():
    return torch.randn(C, C).softmax(dim=-1)


def sgd(params):
    return torch.optim.SGD(params, lr=0.3, momentum=0.8)


def adam(params):
    return torch.optim.Adam(params, lr=0.05, eps=1e-3)


def train(
    method, student, optimizer, batches, validation, *, microbatches=1, clip_norm=None, after_step=lambda step: None
):
    """A loop written by hand: `microbatches` batches make a step; validation batches are used in turn."""
    state, class_means = method.state_dict(), getattr(method, "class_means", None)
    own = TableTeacher.numbered(validation, sum(len(b.target) for b in batches))
    step = DistillationStep(student, optimizer, method, temperature=TAU, validation=own, clip_norm=clip_norm)
    items = TableTeacher.numbered(batches)
    step.prepare(items, TableTeacher([*batches, *validation]), survey_result=Survey(C, class_means))
    method.load_state_dict(state)  # the ratio network of the test, not a new one
    for start in range(0, len(items), microbatches):
        group = items[start : start + microbatches]
        total = sum(len(target) for _, target, _ in group)
        optimizer.zero_grad()
        for item in group:
            (step.loss(item) * len(item[1]) / total).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
        optimizer.step()
        after_step(step)
    step.close()


def prepared(**options):
    tgeo = TGeoKD(**options) if options.get("paper") else ratio_alone(**options)
    tgeo.prepare(C, means() if tgeo.needs_class_means else None)
    return tgeo


# ---- omega learns, and from the right gradient


@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_omega_moves_and_learns_whom_to_trust(encoding):
    """On every second sample the teacher is wrong and on the others the label; the validation labels are right."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(C, WIDTH)

    def samples(n, *, clean):
        truth = torch.randint(C, (n,))
        other = (truth + torch.randint(1, C, (n,))) % C
        teacher_is_wrong = torch.arange(n) % 2 == 0
        label = truth if clean else torch.where(teacher_is_wrong, truth, other)
        believed = torch.where(teacher_is_wrong, other, truth)
        return Samples(
            centres[truth] + 0.3 * torch.randn(n, WIDTH), label, 4.0 * F.one_hot(believed, C)
        ), teacher_is_wrong

    tgeo = ratio_alone(encoding=encoding, lr=0.02, update_interval=1)
    tgeo.prepare(C, torch.full((C, C), 1 / C))
    first = copy.deepcopy(tgeo.network.layers)
    check, teacher_is_wrong = samples(64, clean=False)
    student = Student()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    data = [samples(16, clean=False)[0] for _ in range(100)]
    train(tgeo, student, optimizer, data, [samples(32, clean=True)[0]])
    for layer, before in zip(tgeo.network.layers, first, strict=True):
        assert not torch.equal(layer[0], before[0])
        assert not torch.equal(layer[1], before[1])

    student.eval()
    alpha = tgeo.alpha(LossInputs(student(check.inputs), check.teacher_logits, check.target, TAU)).detach()
    assert alpha[teacher_is_wrong].mean() < 0.25
    assert alpha[~teacher_is_wrong].mean() > 0.75


@pytest.mark.parametrize(
    "options", [{}, {"encoding": "vector"}, {"inter_sample": False}, {"hidden": ()}, {"hidden": (3,), "angles": False}]
)
def test_every_ratio_starts_at_exactly_one_half(options):
    torch.manual_seed(0)
    b = batch(50)
    alpha = prepared(**options).alpha(LossInputs(10 * torch.randn(50, C), b.teacher_logits, b.target, TAU))
    assert alpha.shape == (50,)
    assert torch.equal(alpha, torch.full((50,), 0.5))


def omegas_gradient(tgeo, student, optimizer, train_batches, validation, clip_norm):
    """Gradients that the first step leaves on omega's weights; the arguments stay as they are."""
    tgeo, student, optimizer = copy.deepcopy((tgeo, student, optimizer))
    state = torch.get_rng_state()
    train(tgeo, student, optimizer, train_batches, [validation], microbatches=len(train_batches), clip_norm=clip_norm)
    torch.set_rng_state(state)
    return by_layer(tgeo.network, tgeo.network.omega.grad)


def brute_force(tgeo, student, optimizer, train_batches, validation, clip_norm, direction, h=1e-5):
    """The validation loss after the student's real step, by central difference along a direction in omega's weights."""

    def validation_loss(shift):
        network, model, moved = copy.deepcopy((tgeo, student, optimizer))
        with torch.no_grad():
            for name, part in by_layer(network.network, network.network.omega.detach()).items():
                if name in direction:
                    part += shift * direction[name]
        state = torch.get_rng_state()
        moved.zero_grad()
        total = sum(len(b.target) for b in train_batches)
        for b in train_batches:
            z = model(b.inputs)
            with torch.no_grad():
                alpha = network.alpha(LossInputs(z, b.teacher_logits, b.target, TAU))
            p = F.softmax(b.teacher_logits / TAU, dim=1)
            kd = TAU**2 * (p * (p.log() - F.log_softmax(z / TAU, dim=1))).sum(dim=1)
            gt = F.cross_entropy(z, b.target, reduction="none")
            ((alpha * kd + (1 - alpha) * gt).sum() / total).backward()
        if clip_norm is not None:
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm) > clip_norm
        moved.step()
        torch.set_rng_state(state)
        model.eval()
        with torch.no_grad():
            return F.cross_entropy(model(validation.inputs), validation.target).item()

    return (8 * (validation_loss(h) - validation_loss(-h)) - validation_loss(2 * h) + validation_loss(-2 * h)) / (
        12 * h
    )


def one_weight(param, *index):
    direction = torch.zeros_like(param)
    direction[index] = 1.0
    return direction


SITUATIONS = [
    pytest.param(sgd, 1, None, "scalar", id="sgd"),
    pytest.param(adam, 1, None, "vector", id="adam"),
    pytest.param(sgd, 3, 0.1, "scalar", id="sgd-clipped-accumulated"),
    pytest.param(adam, 2, 0.1, "scalar", id="adam-clipped-accumulated"),
]


def situation(make_optimizer, count, encoding, *, zero_start):
    torch.manual_seed(3)
    tgeo = prepared(
        encoding=encoding, hidden=(6, 5), hypergradient="forward", ema_decay=0.0, project_out_step_length=False
    )
    if not zero_start:
        nn.init.normal_(tgeo.network.layers[-1][0])
        nn.init.normal_(tgeo.network.layers[-1][1])
    student = Student()
    optimizer = make_optimizer(student.parameters())
    student(batch(N).inputs).square().sum().backward()
    optimizer.step()  # so that the optimizer has a state
    train_batches = [batch(N // count) for _ in range(count)]
    return tgeo, student, optimizer, train_batches, batch(M)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make_optimizer", "count", "clip_norm", "encoding"), SITUATIONS)
def test_gradient_of_the_first_step_for_weights_of_the_last_layer(make_optimizer, count, clip_norm, encoding):
    args = (*situation(make_optimizer, count, encoding, zero_start=True), clip_norm)
    found = omegas_gradient(*args)
    weight, bias = found["weight2"], found["bias2"]
    largest = int(weight.abs().argmax())
    truth = brute_force(*args, {"weight2": one_weight(weight, 0, largest)})
    assert abs(truth) > 1e-5
    assert weight[0, largest].item() == pytest.approx(truth, rel=1e-6)
    assert bias.item() == pytest.approx(brute_force(*args, {"bias2": one_weight(bias, 0)}), rel=1e-6)
    # the layers below get nothing through a last layer of zeros
    assert torch.equal(found["weight0"], torch.zeros_like(found["weight0"]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make_optimizer", "count", "clip_norm", "encoding"), SITUATIONS)
def test_gradient_for_a_weight_of_the_first_layer_and_for_all_weights_at_once(
    make_optimizer, count, clip_norm, encoding
):
    args = (*situation(make_optimizer, count, encoding, zero_start=False), clip_norm)
    found = omegas_gradient(*args)
    weight = found["weight0"]
    row, column = divmod(int(weight.abs().argmax()), weight.shape[1])
    truth = brute_force(*args, {"weight0": one_weight(weight, row, column)})
    assert abs(truth) > 1e-5
    assert weight[row, column].item() == pytest.approx(truth, rel=1e-6)

    own = torch.Generator().manual_seed(0)  # the global stream must stay where the step's dropout mask begins
    anywhere = {name: torch.randn(g.shape, generator=own) for name, g in found.items()}
    along = sum((found[name] * d).sum() for name, d in anywhere.items()).item()
    assert along == pytest.approx(brute_force(*args, anywhere), rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_one_step_of_omega_lowers_the_validation_loss():
    tgeo, student, optimizer, train_batches, validation = situation(sgd, 1, "scalar", zero_start=False)
    gradient = omegas_gradient(tgeo, student, optimizer, train_batches, validation, None)
    size = sum(g.square().sum() for g in gradient.values()).sqrt()
    derivative = brute_force(
        tgeo, student, optimizer, train_batches, validation, None, {n: -g / size for n, g in gradient.items()}
    )
    assert derivative == pytest.approx(-float(size), rel=1e-6)
    before = tgeo.network.omega.detach().clone()
    train(tgeo, student, optimizer, train_batches, [validation])
    moved = by_layer(tgeo.network, tgeo.network.omega.detach() - before)
    assert sum((g * moved[name]).sum() for name, g in gradient.items()) < 0


# ---- nothing else gets a gradient


@pytest.mark.usefixtures("float64")
def test_no_gradient_reaches_the_student_through_alpha_nor_omega_through_the_loss():
    torch.manual_seed(0)
    tgeo = prepared()
    nn.init.normal_(tgeo.network.layers[-1][0])
    b = batch(N)
    logits = torch.randn(N, C, requires_grad=True)
    result = tgeo.loss(LossInputs(logits, b.teacher_logits, b.target, TAU))
    result.loss.sum().backward()
    assert all(p.grad is None for p in tgeo.network.parameters())

    # the student's gradient is that of a fixed alpha: alpha tau (S_tau - T_tau) + (1 - alpha) (S - G)
    alpha = result.alpha.detach().unsqueeze(-1)
    z = logits.detach()
    softened = TAU * ((z / TAU).softmax(dim=1) - (b.teacher_logits / TAU).softmax(dim=1))
    expected = alpha * softened + (1 - alpha) * (z.softmax(dim=1) - F.one_hot(b.target, C))
    torch.testing.assert_close(logits.grad, expected)

    # and alpha itself does not lead back to the student
    (through_alpha,) = torch.autograd.grad(result.weight.sum(), logits, allow_unused=True)
    assert through_alpha is None
    result.weight.sum().backward()
    assert all(p.grad is not None for p in tgeo.network.parameters())


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("hypergradient", ["auto", "exact", "forward", "finite_difference", "last_layer", "unrolled"])
def test_without_a_rate_it_is_plain_distillation_bit_for_bit(hypergradient, microbatches):
    torch.manual_seed(0)
    data, validation = [batch(N) for _ in range(6)], [batch(M), batch(M)]
    plain = {"ema_decay": 0.0, "project_out_step_length": False} if hypergradient == "unrolled" else {}
    ours, theirs = prepared(lr=0.0, hypergradient=hypergradient, **plain), VanillaKD(alpha=0.5)
    students = [Student(), None]
    students[1] = copy.deepcopy(students[0])
    states = []
    for method, student in zip((ours, theirs), students, strict=True):
        torch.manual_seed(1)
        optimizer = sgd(student.parameters())
        train(method, student, optimizer, data, validation, microbatches=microbatches, clip_norm=1.0)
        states.append((student.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_with_a_rate_it_is_not_plain_distillation():
    torch.manual_seed(0)
    data, validation = [batch(N) for _ in range(4)], [batch(M)]
    student = Student()
    other = copy.deepcopy(student)
    torch.manual_seed(1)
    train(prepared(lr=0.1), student, sgd(student.parameters()), data, validation)
    torch.manual_seed(1)
    train(VanillaKD(alpha=0.5), other, sgd(other.parameters()), data, validation)
    assert not torch.equal(student.head.weight, other.head.weight)


# ---- every k-th step


class Counted(list):
    """Batches, with the number of steps taken at the time each was drawn."""

    def __init__(self, batches):
        super().__init__(batches)
        self.step, self.drawn_at = None, []

    def __iter__(self):
        for item in super().__iter__():
            self.drawn_at.append(self.step.index)
            yield item


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_omega_moves_in_each_kth_step_only(interval):
    torch.manual_seed(0)
    tgeo = prepared(update_interval=interval)
    student = Student()
    assert [tgeo.needs_hypergradient(index) for index in range(6)] == [index % interval == 0 for index in range(6)]
    seen = [tgeo.network.omega.detach().clone()]
    moved, attached, loss_of = [], [], tgeo.loss

    def watched(inputs):
        result = loss_of(inputs)
        attached.append(result.weight.requires_grad)
        return result

    tgeo.loss = watched

    def watch(step):
        seen.append(tgeo.network.omega.detach().clone())
        moved.append(not torch.equal(seen[-1], seen[-2]))

    train(tgeo, student, sgd(student.parameters()), [batch(N) for _ in range(6)], [batch(M)], after_step=watch)
    assert moved == [index % interval == 0 for index in range(6)]
    assert attached == moved  # a step that does not learn has no graph of omega


def test_validation_batches_are_drawn_only_where_omega_moves():
    tgeo, student, batches = prepared(update_interval=3), Student(), [batch(N) for _ in range(5)]
    held = Counted(TableTeacher.numbered([batch(M)], 5 * N))
    optimizer = sgd(student.parameters())
    step = held.step = DistillationStep(student, optimizer, tgeo, temperature=TAU, validation=held)
    step.prepare(TableTeacher.numbered(batches), TableTeacher(batches), survey_result=Survey(C, tgeo.class_means))
    for item in TableTeacher.numbered(batches):
        step.loss(item).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert held.drawn_at == [0, 3]


# ---- state, and learning from a given gradient


def test_state_goes_round_and_training_goes_on_the_same():
    torch.manual_seed(0)
    data, validation = [batch(N) for _ in range(3)], [batch(M)]
    first, student = prepared(), Student()
    train(first, student, sgd(student.parameters()), data, validation)
    state = copy.deepcopy(first.state_dict())

    second = prepared()  # other initial weights, other class means
    assert not torch.equal(second.network.omega, first.network.omega)
    second.load_state_dict(state)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)

    finals = []
    for tgeo in (first, second):  # omega's optimizer must come along: its moments decide the next step
        model = copy.deepcopy(student)
        torch.manual_seed(1)
        train(tgeo, model, sgd(model.parameters()), data, validation)
        finals.append((model.state_dict(), tgeo.state_dict()))
    torch.testing.assert_close(finals[0], finals[1], rtol=0, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_learn_is_one_step_of_adam_on_the_given_gradient(weight_decay):
    torch.manual_seed(0)
    tgeo = prepared(lr=0.03, weight_decay=weight_decay)
    nn.init.normal_(tgeo.network.layers[-1][0])
    b, gradient = batch(N), torch.randn(N)
    logits = torch.randn(N, C)
    mine = copy.deepcopy(tgeo)
    tgeo.learn(tgeo.loss(LossInputs(logits, b.teacher_logits, b.target, TAU)).weight, gradient.double())

    reference = torch.optim.Adam(mine.network.parameters(), lr=0.03, weight_decay=weight_decay)
    (mine.loss(LossInputs(logits, b.teacher_logits, b.target, TAU)).weight * gradient).sum().backward()
    reference.step()
    for found, expected in zip(tgeo.network.parameters(), mine.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_inner_samples_are_the_first_of_the_batch_with_gradients_scaled_by_their_share():
    torch.manual_seed(0)
    data, validation = [batch(N)], [batch(M)]
    moved = {}
    for count in (None, N // 2):
        torch.manual_seed(1)
        tgeo = prepared(hypergradient="forward", update_interval=1, inner_samples=count)
        student = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, C))
        given = []
        tgeo.learn = lambda alpha, gradient, given=given: given.append(gradient)
        train(tgeo, student, sgd(student.parameters()), data, validation)
        (moved[count],) = given
    half = moved[N // 2]
    torch.testing.assert_close(half[: N // 2], 2 * moved[None][: N // 2])
    assert not half[N // 2 :].any()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make_optimizer", "count", "clip_norm", "encoding"), SITUATIONS[:2])
def test_the_papers_method_follows_the_true_gradient(make_optimizer, count, clip_norm, encoding):
    torch.manual_seed(3)
    tgeo = prepared(paper=True, hidden=(6, 5))
    nn.init.normal_(tgeo.network.layers[-1][0])
    student = Student()
    args = (tgeo, student, make_optimizer(student.parameters()), [batch(N)], batch(M), clip_norm)
    if make_optimizer is adam:  # Adam's first step hardly depends on the gradient
        student(batch(N).inputs).square().sum().backward()
        args[2].step()
    found = omegas_gradient(*args)
    own = torch.Generator().manual_seed(0)
    anywhere = {name: torch.randn(g.shape, generator=own) for name, g in found.items()}
    along = sum((found[name] * d).sum() for name, d in anywhere.items()).item()
    assert along == pytest.approx(brute_force(*args, anywhere), rel=1e-6)


def test_each_extension_changes_what_omega_learns():
    """From the second update on: an average of one gradient is that gradient."""
    found = {}
    for name, options in {
        "plain": {"ema_decay": 0.0, "project_out_step_length": False},
        "average": {"ema_decay": 0.9, "project_out_step_length": False},
        "projected": {"ema_decay": 0.0, "project_out_step_length": True},
    }.items():
        torch.manual_seed(0)
        tgeo, student = prepared(update_interval=1, **options), Student()
        data, validation = [batch(N) for _ in range(2)], [batch(M), batch(M)]
        after = []
        train(tgeo, student, sgd(student.parameters()), data, validation,
              after_step=lambda step, tgeo=tgeo, after=after: after.append(tgeo.network.omega.grad.clone()))  # fmt: skip
        found[name] = after
    assert torch.equal(found["average"][0], found["plain"][0])
    assert not torch.allclose(found["average"][1], found["plain"][1], rtol=1e-2)
    assert not torch.allclose(found["projected"][0], found["plain"][0], rtol=1e-2)
