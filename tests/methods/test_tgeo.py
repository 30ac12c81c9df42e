"""TGeo-KD: omega gets the true gradient of the held-out loss, through the student's real step, and nothing else.

The authors' public code computes alpha without a gradient in the inner loop and back-propagates the outer loss through the
student alone, so omega never moves. Every test in the first part would fail for it.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tgeokd import TGeoKD, VanillaKD
from tgeokd.bilevel import Lookahead
from tgeokd.core.geometry import ClassMeans, num_features, trilateral
from tgeokd.methods import tgeo as tgeo_module
from tgeokd.methods.base import Batch, Signals, TrainingStep
from tgeokd.methods.ratio_network import Adam, RatioNetwork
from tgeokd.utils.errors import InputError

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
    return Batch(torch.randn(n, WIDTH), torch.randint(C, (n,)), 2 * torch.randn(n, C))


def means():
    return torch.randn(C, C).softmax(dim=-1)


def sgd(params):
    return torch.optim.SGD(params, lr=0.3, momentum=0.8)


def adam(params):
    return torch.optim.Adam(params, lr=0.05, eps=1e-3)


def train(method, student, optimizer, batches, held_out, *, parts=1, clip_norm=None, after_step=lambda step: None):
    """The loop of the Distiller, by hand: `parts` batches make a step."""
    lookahead = Lookahead(student, optimizer, temperature=TAU, method=method.hypergradient, clip_norm=clip_norm)
    drawn = itertools.cycle(held_out)
    for index in range(len(batches) // parts):
        step = TrainingStep(index, lookahead, batches[index * parts : (index + 1) * parts], lambda: next(drawn))
        method.before_forward(step)
        optimizer.zero_grad()
        total = sum(len(b.target) for b in step.batches)
        for b in step.batches:
            logits = lookahead.forward(b.inputs, b.target, b.teacher_logits, record=method.records(index))
            result = method.loss(Signals(logits, b.teacher_logits, b.target, TAU))
            (result.loss.sum() / total).backward()
            step.losses.append(result)
        lookahead.step()
        method.after_update(step)
        after_step(step)


def prepared(**options):
    tgeo = TGeoKD(**options)
    tgeo.prepare(C, means() if tgeo.needs_class_means else None)
    return tgeo


# ---- omega learns, and from the right gradient


@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_omega_moves_and_learns_whom_to_trust(encoding):
    """On every second sample the teacher is wrong and on the others the label; the held-out labels are right."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(C, WIDTH)

    def samples(n, *, clean):
        truth = torch.randint(C, (n,))
        other = (truth + torch.randint(1, C, (n,))) % C
        teacher_is_wrong = torch.arange(n) % 2 == 0
        label = truth if clean else torch.where(teacher_is_wrong, truth, other)
        believed = torch.where(teacher_is_wrong, other, truth)
        return Batch(
            centres[truth] + 0.3 * torch.randn(n, WIDTH), label, 4.0 * F.one_hot(believed, C)
        ), teacher_is_wrong

    tgeo = TGeoKD(encoding=encoding, lr=0.02, every=1)
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
    alpha = tgeo.alpha(Signals(student(check.inputs), check.teacher_logits, check.target, TAU)).detach()
    assert alpha[teacher_is_wrong].mean() < 0.25
    assert alpha[~teacher_is_wrong].mean() > 0.75


@pytest.mark.parametrize(
    "options", [{}, {"encoding": "vector"}, {"inter_sample": False}, {"hidden": ()}, {"hidden": (3,), "angles": False}]
)
def test_every_ratio_starts_at_exactly_one_half(options):
    torch.manual_seed(0)
    b = batch(50)
    alpha = prepared(**options).alpha(Signals(10 * torch.randn(50, C), b.teacher_logits, b.target, TAU))
    assert alpha.shape == (50,)
    assert torch.equal(alpha, torch.full((50,), 0.5))


def by_layer(network, vector):
    """A vector like omega as weights and biases by layer: `weight0`, `bias0`, `weight1`, ..."""
    parts, start = {}, 0
    for i, layer in enumerate(network.layers):
        for name, like in zip(("weight", "bias"), layer, strict=True):
            parts[f"{name}{i}"] = vector[start : start + like.numel()].view_as(like)
            start += like.numel()
    assert start == len(vector)
    return parts


def omegas_gradient(tgeo, student, optimizer, train_batches, held_out, clip_norm):
    """Gradients that the first step leaves on omega's weights; the arguments stay as they are."""
    tgeo, student, optimizer = copy.deepcopy((tgeo, student, optimizer))
    state = torch.get_rng_state()
    train(tgeo, student, optimizer, train_batches, [held_out], parts=len(train_batches), clip_norm=clip_norm)
    torch.set_rng_state(state)
    return by_layer(tgeo.network, tgeo.network.omega.grad)


def brute_force(tgeo, student, optimizer, train_batches, held_out, clip_norm, direction, h=1e-5):
    """The held-out loss after the student's real step, by central difference along a direction in omega's weights."""

    def held_out_loss(shift):
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
                alpha = network.alpha(Signals(z, b.teacher_logits, b.target, TAU))
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
            return F.cross_entropy(model(held_out.inputs), held_out.target).item()

    return (8 * (held_out_loss(h) - held_out_loss(-h)) - held_out_loss(2 * h) + held_out_loss(-2 * h)) / (12 * h)


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


def situation(make_optimizer, parts, encoding, *, zero_start):
    torch.manual_seed(3)
    tgeo = prepared(encoding=encoding, hidden=(6, 5), hypergradient="forward", average=0.0, fixed_length=False)
    if not zero_start:
        nn.init.normal_(tgeo.network.layers[-1][0])
        nn.init.normal_(tgeo.network.layers[-1][1])
    student = Student()
    optimizer = make_optimizer(student.parameters())
    student(batch(N).inputs).square().sum().backward()
    optimizer.step()  # so that the optimizer has a state
    train_batches = [batch(N // parts) for _ in range(parts)]
    return tgeo, student, optimizer, train_batches, batch(M)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make_optimizer", "parts", "clip_norm", "encoding"), SITUATIONS)
def test_gradient_of_the_first_step_for_weights_of_the_last_layer(make_optimizer, parts, clip_norm, encoding):
    args = (*situation(make_optimizer, parts, encoding, zero_start=True), clip_norm)
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
@pytest.mark.parametrize(("make_optimizer", "parts", "clip_norm", "encoding"), SITUATIONS)
def test_gradient_for_a_weight_of_the_first_layer_and_for_all_weights_at_once(
    make_optimizer, parts, clip_norm, encoding
):
    args = (*situation(make_optimizer, parts, encoding, zero_start=False), clip_norm)
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
def test_one_step_of_omega_lowers_the_held_out_loss():
    tgeo, student, optimizer, train_batches, held_out = situation(sgd, 1, "scalar", zero_start=False)
    gradient = omegas_gradient(tgeo, student, optimizer, train_batches, held_out, None)
    size = sum(g.square().sum() for g in gradient.values()).sqrt()
    slope = brute_force(
        tgeo, student, optimizer, train_batches, held_out, None, {n: -g / size for n, g in gradient.items()}
    )
    assert slope == pytest.approx(-float(size), rel=1e-6)
    before = tgeo.network.omega.detach().clone()
    train(tgeo, student, optimizer, train_batches, [held_out])
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
    result = tgeo.loss(Signals(logits, b.teacher_logits, b.target, TAU))
    result.loss.sum().backward()
    assert all(p.grad is None for p in tgeo.network.parameters())

    # the student's gradient is that of a fixed alpha: alpha tau (S_tau - T_tau) + (1 - alpha) (S - G)
    alpha = result.alpha.detach().unsqueeze(-1)
    z = logits.detach()
    softened = TAU * ((z / TAU).softmax(dim=1) - (b.teacher_logits / TAU).softmax(dim=1))
    expected = alpha * softened + (1 - alpha) * (z.softmax(dim=1) - F.one_hot(b.target, C))
    torch.testing.assert_close(logits.grad, expected)

    # and alpha itself does not lead back to the student
    (through_alpha,) = torch.autograd.grad(result.alpha.sum(), logits, allow_unused=True)
    assert through_alpha is None
    result.alpha.sum().backward()
    assert all(p.grad is not None for p in tgeo.network.parameters())


def test_alpha_reaches_omega_even_in_a_block_without_gradients():
    tgeo, b = prepared(), batch(N)
    with torch.no_grad():
        alpha = tgeo.alpha(Signals(torch.randn(N, C), b.teacher_logits, b.target, TAU))
    assert alpha.requires_grad


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("hypergradient", ["auto", "exact", "forward", "finite_difference", "last_layer", "unrolled"])
def test_without_a_rate_it_is_plain_distillation_bit_for_bit(hypergradient, parts):
    torch.manual_seed(0)
    data, held_out = [batch(N) for _ in range(6)], [batch(M), batch(M)]
    plain = {"average": 0.0, "fixed_length": False} if hypergradient == "unrolled" else {}
    ours, theirs = prepared(lr=0.0, hypergradient=hypergradient, **plain), VanillaKD(alpha=0.5)
    students = [Student(), None]
    students[1] = copy.deepcopy(students[0])
    states = []
    for method, student in zip((ours, theirs), students, strict=True):
        torch.manual_seed(1)
        optimizer = sgd(student.parameters())
        train(method, student, optimizer, data, held_out, parts=parts, clip_norm=1.0)
        states.append((student.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_with_a_rate_it_is_not_plain_distillation():
    torch.manual_seed(0)
    data, held_out = [batch(N) for _ in range(4)], [batch(M)]
    student = Student()
    other = copy.deepcopy(student)
    torch.manual_seed(1)
    train(prepared(lr=0.1), student, sgd(student.parameters()), data, held_out)
    torch.manual_seed(1)
    train(VanillaKD(alpha=0.5), other, sgd(other.parameters()), data, held_out)
    assert not torch.equal(student.head.weight, other.head.weight)


# ---- every k-th step


@pytest.mark.parametrize("every", [1, 2, 3])
def test_omega_moves_in_each_kth_step_only(every):
    torch.manual_seed(0)
    tgeo = prepared(every=every)
    student = Student()
    assert [tgeo.records(index) for index in range(6)] == [index % every == 0 for index in range(6)]
    seen = [copy.deepcopy(tgeo.network.state_dict())]
    moved, recorded = [], []

    def watch(step):
        now = copy.deepcopy(tgeo.network.state_dict())
        moved.append(any(not torch.equal(now[name], seen[-1][name]) for name in now))
        seen.append(now)
        b = step.outer()
        try:
            step.lookahead.ratio_gradient(b.inputs, b.target, step.losses[0].alpha)
            recorded.append(True)
        except RuntimeError:
            recorded.append(False)

    train(tgeo, student, sgd(student.parameters()), [batch(N) for _ in range(6)], [batch(M)], after_step=watch)
    assert moved == [index % every == 0 for index in range(6)]
    assert recorded == moved


def test_held_out_batches_are_drawn_only_where_omega_moves():
    tgeo, student = prepared(every=3), Student()
    optimizer = sgd(student.parameters())
    lookahead = Lookahead(student, optimizer, temperature=TAU, method="forward")
    drawn = []

    def outer():
        drawn.append(index)
        return batch(M)

    for index in range(5):
        b = batch(N)
        logits = lookahead.forward(b.inputs, b.target, b.teacher_logits, record=tgeo.records(index))
        result = tgeo.loss(Signals(logits, b.teacher_logits, b.target, TAU))
        optimizer.zero_grad()
        result.loss.mean().backward()
        lookahead.step()
        tgeo.after_update(TrainingStep(index, lookahead, [b], outer, [result]))
    assert drawn == [0, 3]


# ---- state, construction, errors


def test_state_goes_round_and_training_goes_on_the_same():
    torch.manual_seed(0)
    data, held_out = [batch(N) for _ in range(3)], [batch(M)]
    first, student = prepared(), Student()
    train(first, student, sgd(student.parameters()), data, held_out)
    state = copy.deepcopy(first.state_dict())

    second = prepared()  # other initial weights, other class means
    assert not torch.equal(second.network.omega, first.network.omega)
    second.load_state_dict(state)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)

    finals = []
    for tgeo in (first, second):  # omega's optimizer must come along: its moments decide the next step
        model = copy.deepcopy(student)
        torch.manual_seed(1)
        train(tgeo, model, sgd(model.parameters()), data, held_out)
        finals.append((model.state_dict(), tgeo.state_dict()))
    torch.testing.assert_close(finals[0], finals[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "named"), [(None, "none"), (torch.rand(C, 3), r"shape \(4, 3\)"), (torch.rand(C), "shape")]
)
def test_class_means_of_the_wrong_shape(given, named):
    with pytest.raises(InputError, match=rf"class_means must have shape \(4, 4\), got {named}"):
        TGeoKD().prepare(C, given)


def test_class_means_are_not_needed_without_the_inter_sample_triangle():
    tgeo, b = TGeoKD(inter_sample=False), batch(N)
    assert not tgeo.needs_class_means
    assert TGeoKD().needs_class_means
    tgeo.prepare(C, None)
    assert tgeo.alpha(Signals(torch.randn(N, C), b.teacher_logits, b.target, TAU)).shape == (N,)


def test_the_class_means_matter():
    tgeo, b = prepared(), batch(N)
    nn.init.normal_(tgeo.network.layers[-1][0])
    signals = Signals(torch.randn(N, C), b.teacher_logits, b.target, TAU)
    before = tgeo.alpha(signals)
    tgeo.class_means = means()
    assert not torch.equal(tgeo.alpha(signals), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vertices": False, "edges": False, "angles": False}, "all switched off"),
        ({"encoding": "vector", "vertices": False, "edges": False}, "all switched off"),
        ({"encoding": "polar"}, "encoding must be 'vector' or 'scalar', not 'polar'"),
        ({"every": 0}, "every must be >= 1, not 0"),
    ],
)
def test_impossible_settings_are_refused_at_construction(options, message):
    with pytest.raises(InputError, match=message):
        TGeoKD(**options)


def test_angles_alone_without_any_angle_are_refused_at_construction():
    # the only triangle left has lost its S-T edge, and with it its angles
    with pytest.raises(InputError):
        TGeoKD(vertices=False, edges=False, angles=True, student_teacher_edge=False, inter_sample=False)


def test_alpha_before_prepare():
    b = batch(N)
    with pytest.raises(RuntimeError, match=r"prepare\(num_classes, class_means\)"):
        TGeoKD().alpha(Signals(torch.randn(N, C), b.teacher_logits, b.target, TAU))


def test_a_teacher_is_needed():
    with pytest.raises(InputError, match="needs a teacher"):
        prepared().alpha(Signals(torch.randn(N, C), None, torch.zeros(N, dtype=torch.int64), TAU))


@pytest.mark.parametrize("hidden", [(), (7,), (32, 16)])
@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_the_networks_shape(encoding, hidden):
    tgeo = prepared(encoding=encoding, hidden=hidden)
    widths = [num_features(C, encoding=encoding), *hidden, 1]
    assert isinstance(tgeo.network, RatioNetwork)
    assert [(w.shape, b.shape) for w, b in tgeo.network.layers] == [
        ((n_out, n_in), (n_out,)) for n_in, n_out in itertools.pairwise(widths)
    ]


def test_ratios_and_their_gradient_are_those_of_autograd_through_the_layers():
    torch.manual_seed(0)
    for hidden in ((), (7,), (8, 5, 3)):
        network = RatioNetwork(6, hidden).double()
        nn.init.normal_(network.omega)
        features = torch.randn(9, 6, dtype=torch.float64)

        def by_autograd(omega, network=network, features=features):
            parts = list(by_layer(network, omega).values())
            for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
                features = F.leaky_relu(features @ weight.T + bias)
            return (features @ parts[-2].T + parts[-1]).sigmoid().squeeze(-1)

        ratios = network(features)
        torch.testing.assert_close(ratios, by_autograd(network.omega))
        gradient = torch.randn(9, dtype=torch.float64)
        (found,) = torch.autograd.grad(ratios, network.omega, gradient)
        (truth,) = torch.autograd.grad(by_autograd(network.omega), network.omega, gradient)
        torch.testing.assert_close(found, truth)


def test_a_moved_or_copied_network_still_reads_its_own_omega():
    network = RatioNetwork(3, (4,))
    features = torch.randn(5, 3)
    for other in (copy.deepcopy(network), copy.deepcopy(network).double().float()):
        nn.init.normal_(other.omega)
        assert not torch.equal(other(features), network(features))
        assert torch.equal(network(features), torch.full((5,), 0.5))
        assert torch.equal(torch.cat([part.flatten() for layer in other.layers for part in layer]), other.omega)


def test_omega_starts_as_linear_layers_do():
    torch.manual_seed(5)
    network = RatioNetwork(6, (7,))
    torch.manual_seed(5)
    first = nn.Linear(6, 7)
    assert torch.equal(network.layers[0][0], first.weight)
    assert torch.equal(network.layers[0][1], first.bias)
    assert not network.layers[1][0].any()


def test_a_step_that_does_not_learn_has_no_graph_of_omega():
    tgeo, student = prepared(every=2), Student()
    attached = []
    train(
        tgeo, student, sgd(student.parameters()), [batch(N) for _ in range(4)], [batch(M)],
        after_step=lambda step: attached.append(step.losses[0].alpha.requires_grad),
    )  # fmt: skip
    assert attached == [True, False, True, False]
    b = batch(N)
    assert tgeo.alpha(Signals(torch.randn(N, C), b.teacher_logits, b.target, TAU)).requires_grad  # outside of a step


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_many_steps_of_omega_are_those_of_torchs_adam(weight_decay):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(20, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    adam, reference = Adam(ours, 0.03, weight_decay), torch.optim.Adam([theirs], lr=0.03, weight_decay=weight_decay)
    for _ in range(50):
        theirs.grad = torch.randn(20, dtype=torch.float64) * 10.0 ** float(torch.randint(-9, 3, ()))
        adam.step(theirs.grad)
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


# ---- very many classes


def many(c=40, kept=5, n=200):
    means = ClassMeans(c, kept)
    means.update((3 * torch.randn(n, c)).softmax(dim=-1), torch.arange(n) % c)
    return means.compute()


def test_sparse_class_means_are_used_as_the_coarsened_geometry(caplog):
    torch.manual_seed(0)
    table = many()
    tgeo = TGeoKD()
    with caplog.at_level("INFO", logger="tgeokd"):
        tgeo.prepare(40, table)
    assert caplog.messages == [
        "geometry: for 40 classes on the label and the class mean's 5 largest others, the rest spread evenly"
    ]
    nn.init.normal_(tgeo.network.layers[-1][0])
    z, t, y = torch.randn(N, 40), torch.randn(N, 40), torch.randint(40, (N,))
    delta = trilateral(z.softmax(-1), t.softmax(-1), y, table, encoding="scalar")
    torch.testing.assert_close(tgeo.alpha(Signals(z, t, y, TAU)), tgeo.network(delta))


def test_omegas_size_and_features_do_not_depend_on_the_number_of_classes():
    small, large = TGeoKD(), TGeoKD()
    small.prepare(C, means())
    large.prepare(40, many())
    assert small.network.omega.shape == large.network.omega.shape


@pytest.mark.parametrize("inter_sample", [True, False])
def test_a_hundred_thousand_classes(inter_sample):
    c = 100_000
    tgeo = TGeoKD(inter_sample=inter_sample)
    table = None
    if inter_sample:
        gathered = ClassMeans(c)
        gathered.update(torch.full((2, c), 1 / c), torch.tensor([0, 1]))
        with pytest.warns(UserWarning, match="no training sample"):
            table = gathered.compute()
    tgeo.prepare(c, table)
    alpha = tgeo.alpha(Signals(torch.randn(3, c), torch.randn(3, c), torch.tensor([0, 5, c - 1]), TAU))
    assert torch.equal(alpha, torch.full((3,), 0.5))
    tgeo.learn(alpha, torch.ones(3))
    assert tgeo.network.omega.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"inter_sample": False}])
def test_the_vector_encoding_does_not_go_with_very_many_classes(options, monkeypatch):
    monkeypatch.setattr(tgeo_module, "DENSE_CLASSES", 20)
    with pytest.raises(InputError, match="does not go with 40 of them; use encoding='scalar'"):
        TGeoKD(encoding="vector", **options).prepare(40, None if options else many())


def test_state_with_sparse_class_means_goes_round_through_a_file(tmp_path):
    torch.manual_seed(0)
    first, second = TGeoKD(), TGeoKD()
    first.prepare(40, many())
    second.prepare(40, many())
    signals = Signals(torch.randn(N, 40), torch.randn(N, 40), torch.randint(40, (N,)), TAU)
    first.learn(first.alpha(signals), torch.randn(N))
    nn.init.normal_(first.network.layers[-1][0])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(second.alpha(signals), first.alpha(signals))
    stored = (tmp_path / "state.pt").stat().st_size
    assert stored < 40 * 6 * 4 + 40 * 7 * 4 + 3 * 4 * first.network.omega.numel() + 8000


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_learn_is_one_step_of_adam_on_the_given_gradient(weight_decay):
    torch.manual_seed(0)
    tgeo = prepared(lr=0.03, weight_decay=weight_decay)
    nn.init.normal_(tgeo.network.layers[-1][0])
    b, gradient = batch(N), torch.randn(N)
    logits = torch.randn(N, C)
    mine = copy.deepcopy(tgeo)
    tgeo.learn(tgeo.alpha(Signals(logits, b.teacher_logits, b.target, TAU)), gradient.double())

    reference = torch.optim.Adam(mine.network.parameters(), lr=0.03, weight_decay=weight_decay)
    (mine.alpha(Signals(logits, b.teacher_logits, b.target, TAU)) * gradient).sum().backward()
    reference.step()
    for found, expected in zip(tgeo.network.parameters(), mine.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_in_another_precision_than_omegas(dtype):
    tgeo, b = prepared(), batch(N)
    alpha = tgeo.alpha(Signals(torch.randn(N, C, dtype=dtype), b.teacher_logits.to(dtype), b.target, TAU))
    assert torch.equal(alpha, torch.full_like(alpha, 0.5))


def test_a_sample_of_the_batch_teaches_omega_as_its_own_gradient_says():
    torch.manual_seed(0)
    data, held_out = [batch(N)], [batch(M)]
    moved = {}
    for count in (None, N // 2):
        torch.manual_seed(1)
        tgeo = prepared(hypergradient="forward", every=1, inner_samples=count)
        student = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, C))
        asked = []
        tgeo.learn = lambda alpha, gradient, asked=asked: asked.append(gradient)
        train(tgeo, student, sgd(student.parameters()), data, held_out)
        (moved[count],) = asked
    half = moved[N // 2]
    torch.testing.assert_close(half[: N // 2], 2 * moved[None][: N // 2])
    assert not half[N // 2 :].any()


# ---- the paper's method, and the extensions


def test_the_papers_method_has_no_extension():
    paper = TGeoKD(paper=True, lr=0.01, hidden=(8,))
    assert (paper.outer, paper.every, paper.hypergradient) == ("holdout", 1, "exact")
    assert (paper.switches["encoding"], paper.direction) == ("vector", None)
    assert TGeoKD(paper=True, hypergradient="unrolled").hypergradient == "unrolled"  # exact as well


@pytest.mark.parametrize(
    "option",
    [
        {"outer": "union"}, {"every": 2}, {"average": 0.9}, {"fixed_length": True}, {"encoding": "scalar"},
        {"hypergradient": "last_layer"}, {"hypergradient": "auto"},
    ],
)  # fmt: skip
def test_what_is_not_in_the_paper_is_refused_with_it(option):
    (name,) = option
    with pytest.raises(InputError, match=f"paper=True is the published method, which has {name}="):
        TGeoKD(paper=True, **option)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make_optimizer", "parts", "clip_norm", "encoding"), SITUATIONS[:2])
def test_the_papers_method_follows_the_true_gradient(make_optimizer, parts, clip_norm, encoding):
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
        "plain": {"average": 0.0, "fixed_length": False},
        "average": {"average": 0.9, "fixed_length": False},
        "fixed length": {"average": 0.0, "fixed_length": True},
    }.items():
        torch.manual_seed(0)
        tgeo, student = prepared(every=1, **options), Student()
        data, held_out = [batch(N) for _ in range(2)], [batch(M), batch(M)]
        after = []
        train(tgeo, student, sgd(student.parameters()), data, held_out,
              after_step=lambda step, tgeo=tgeo, after=after: after.append(tgeo.network.omega.grad.clone()))  # fmt: skip
        found[name] = after
    assert torch.equal(found["average"][0], found["plain"][0])
    assert not torch.allclose(found["average"][1], found["plain"][1], rtol=1e-2)
    assert not torch.allclose(found["fixed length"][0], found["plain"][0], rtol=1e-2)


@pytest.mark.parametrize("average", [-1, 1])
def test_an_impossible_average(average):
    with pytest.raises(InputError, match="average must lie in"):
        TGeoKD(average=average)


def test_the_unrolled_reference_goes_with_no_extension():
    with pytest.raises(InputError, match="average=0 and fixed_length=False"):
        TGeoKD(hypergradient="unrolled")


def test_a_state_of_other_extensions_is_refused():
    state = prepared().state_dict()
    with pytest.raises(InputError, match="another average or fixed_length"):
        prepared(average=0.0, fixed_length=False).load_state_dict(state)
