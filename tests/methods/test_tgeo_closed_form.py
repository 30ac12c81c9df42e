"""The default of TGeo-KD: it starts at the closed form, is pulled back to it, and does not learn from known labels."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from small_training import ratio_alone
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller, LossInputs, TGeoKD
from tgeokd.core.label_noise import LabelNoise
from tgeokd.core.losses import kd_loss
from tgeokd.data.arrays import ArrayDataset
from tgeokd.utils.errors import InputError

N, C, TAU = 16, 4, 2.0


def noise():
    return LabelNoise(torch.tensor(1.5), 0.1 * torch.arange(C).float(), (0.7 * torch.eye(C) + 0.3 / C).log())


def inputs(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    z, t = (2 * torch.randn(N, C, generator=generator) for _ in range(2))
    return LossInputs(z, t, torch.randint(C, (N,), generator=generator), TAU, **changes)


def prepared(**options):
    method = TGeoKD(**options)
    means = torch.randn(C, C).softmax(-1)
    method.prepare(
        C, means if method.needs_class_means else None, **({"label_noise": noise()} if method.needs_label_noise else {})
    )
    return method


def label_prob(given):
    return noise().posterior(given.teacher, given.target).gather(-1, given.target[:, None]).squeeze(-1).exp()


def start(given, base=0.0):
    return 1 - (1 - base) * label_prob(given)


@pytest.mark.parametrize("options", [{}, {"base": 0.3}, {"base": 0.9}])
def test_the_first_loss_is_the_closed_form(options):
    """``alpha kd + (1 - alpha) CE(q)``; what is reported is all that does not come from the label."""
    given = inputs()
    result = prepared(**options).loss(given)
    alpha = start(given, **options)
    q = noise().posterior(given.teacher, given.target).exp()
    qy = label_prob(given)
    ce = -(q * given.student_logits.log_softmax(-1)).sum(-1)
    expected = alpha * kd_loss(given.student_logits, given.teacher, TAU) + (1 - alpha) * ce
    torch.testing.assert_close(result.loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.weight.detach(), alpha, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.alpha, 1 - (1 - alpha) * qy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [-0.1, 1.0])
def test_a_base_out_of_range_is_refused(base):
    with pytest.raises(InputError, match="base"):
        TGeoKD(base=base)


@pytest.mark.parametrize(("label", "prior"), [("given", True), ("posterior", False), ("given", False)])
def test_each_half_of_the_closed_form_can_be_switched_off(label, prior):
    given = inputs()
    method = prepared(label=label, prior=prior)
    assert method.needs_label_noise == (prior or label == "posterior")
    result = method.loss(given)
    weight = start(given) if prior else torch.full((N,), 0.5)
    torch.testing.assert_close(result.weight.detach(), weight, rtol=1e-4, atol=1e-4)
    kd = kd_loss(given.student_logits, given.teacher, TAU)
    probs = noise().posterior(given.teacher, given.target).exp() if label == "posterior" else F.one_hot(given.target, C)
    ce = -(probs * given.student_logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(result.loss, weight * kd + (1 - weight) * ce, rtol=1e-4, atol=1e-4)


def test_labels_that_are_known_start_at_the_base_and_teach_nothing():
    known = torch.arange(N) % 2 == 0
    method = prepared(penalty=0.1)
    nn.init.normal_(method.network.layers[-1][0], std=0.1)
    result = method.loss(inputs(known=known))
    for base in (0.0, 0.3):
        alpha = prepared(base=base).loss(inputs(known=known)).alpha[known]
        torch.testing.assert_close(alpha, torch.full((N // 2,), base), rtol=0, atol=1e-3)
    gradient = torch.randn(N)
    other = gradient.clone()
    other[known] = 100.0  # what the hypergradient says about these samples does not matter
    copies = []
    for each in (gradient, other):
        own = copy.deepcopy(method)
        own._pulls = list(method._pulls)
        weight = own.loss(inputs(known=known)).weight
        own._pulls = own._pulls[-1:]
        own.learn(weight, each)
        copies.append(own.network.omega.detach().clone())
    assert torch.equal(*copies)
    assert result.weight.requires_grad


def test_the_penalty_pulls_the_ratio_back_to_its_start():
    """Without a hypergradient, f_omega goes to 0, and its pull is the derivative of the divergence from the start."""
    method = prepared(penalty=1.0, lr=0.02)
    nn.init.normal_(method.network.layers[-1][0])
    given = inputs()
    before = method.loss(given).weight.detach()
    begin = start(given)
    for _ in range(400):
        method._pulls = []
        method.learn(method.loss(given).weight, torch.zeros(N))
    after = method.loss(given).weight.detach()
    assert float((after - begin).abs().max()) < 0.05 < float((before - begin).abs().max())

    x, p = torch.tensor([0.4], requires_grad=True), torch.tensor([-0.3])  # log odds learned and at the start
    alpha, prior = (p + x).sigmoid(), p.sigmoid()
    divergence = alpha * (alpha / prior).log() + (1 - alpha) * ((1 - alpha) / (1 - prior)).log()
    (slope,) = torch.autograd.grad(divergence.sum(), alpha)
    torch.testing.assert_close(slope, x.detach())


def test_a_constant_factor_of_the_hypergradient_does_not_matter():
    found = []
    for factor in (1.0, 1e-6):
        torch.manual_seed(0)
        method = prepared(penalty=0.1)
        for k in range(5):
            result = method.loss(inputs(k))
            generator = torch.Generator().manual_seed(k)
            method.learn(result.weight, factor * torch.randn(N, generator=generator))
        found.append(method.network.omega.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_ablations_of_the_triangles_need_their_encodings():
    with pytest.raises(InputError, match="encoding"):
        TGeoKD(edges=False)
    with pytest.raises(InputError, match="label"):
        TGeoKD(label="true")
    TGeoKD(edges=False, encoding="scalar")


# ---- training


def problem(seed, n=1600, n_val=320, classes=40, dim=16, rate=0.35):
    """Many overlapping clusters and a teacher in doubt; a wrong label is the class that it finds second most probable."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.9 * torch.randn(classes, dim, generator=generator)

    def teacher(x):
        return -0.1 * torch.cdist(x, centres) ** 2

    def draw(count):
        y = torch.arange(count) % classes
        return centres[y] + torch.randn(count, dim, generator=generator), y

    (x, y), validation = draw(n), draw(n_val)
    second = teacher(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    wrong = torch.rand(n, generator=generator) < rate
    return teacher, x, torch.where(wrong, second, y), wrong, validation


def train(method, seed, *, with_ids=True, epochs=20):
    """Ratios of the training samples after training, which labels are wrong, and the Distiller."""
    teacher, x, label, wrong, (val_x, val_y) = problem(seed)
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(16, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 40))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    numbered = ArrayDataset(x, label, torch.arange(len(x)))
    data, validation = numbered, ArrayDataset(val_x, val_y, torch.arange(len(val_x)) + len(x))
    if not with_ids:
        data, validation = TensorDataset(x, label), TensorDataset(val_x, val_y)
    distiller = Distiller(student, teacher, method, optimizer, progress=False)
    distiller.fit(DataLoader(data, 50, shuffle=True), DataLoader(validation, 50), epochs=epochs, seed=seed)
    return distiller.fusion_ratios(DataLoader(numbered, 500)), wrong, distiller


def test_the_ratio_does_not_collapse_where_it_did():
    """Before the closed form and the penalty, every ratio ran to 0 here: no label was found wrong, and nothing said so."""
    before, wrong, distiller = train(ratio_alone(), 0)
    assert float(before.max()) < 0.05
    assert distiller.history[-1]["alpha_saturated"] == 1.0
    alpha, wrong, distiller = train(TGeoKD(), 0)
    assert float(alpha.max()) > 0.9
    assert float(alpha.min()) < 0.2
    assert roc_auc_score(wrong, alpha) > 0.85
    assert distiller.history[-1]["alpha_saturated"] < 0.9


def test_a_collapse_is_reported_once(caplog):
    with caplog.at_level("WARNING", logger="tgeokd"):
        train(ratio_alone(), 0)
    assert sum("fusion ratio" in message for message in caplog.messages) == 1


def test_validation_samples_are_recognised_with_and_without_ids():
    for with_ids in (True, False):
        _, _, distiller = train(TGeoKD(), 0, with_ids=with_ids, epochs=1)
        assert distiller._step._validation_ids.tolist() == list(range(1600, 1920))


def test_without_a_model_of_wrong_labels_nobody_needs_to_recognise_them():
    _, _, distiller = train(ratio_alone(), 0, with_ids=False, epochs=1)
    assert distiller._step._validation_ids is None


def test_training_samples_with_the_ids_of_validation_samples_are_reported(caplog):
    teacher, x, label, _, (val_x, val_y) = problem(0)
    student = nn.Linear(16, 40)
    distiller = Distiller(student, teacher, TGeoKD(), torch.optim.SGD(student.parameters(), lr=0.1), progress=False)
    loaders = (DataLoader(ArrayDataset(a, b, torch.arange(len(a))), 50) for a, b in ((x, label), (val_x, val_y)))
    with caplog.at_level("WARNING", logger="tgeokd"):
        distiller.fit(*loaders, epochs=1)
    assert distiller._step._validation_ids is None
    assert any("640" in message and "320" in message for message in caplog.messages)
