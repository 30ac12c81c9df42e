"""TGeo-KD: its options, its state, and many classes."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_training import Samples, ratio_alone, refused
from torch import nn

from tgeokd import LossInputs, TGeoKD
from tgeokd.core.geometry import ClassMeans, num_features, trilateral
from tgeokd.methods import tgeo as tgeo_module
from tgeokd.methods.ratio_network import RatioNetwork

N, C, WIDTH, TAU = 6, 4, 5, 2.5


def batch(n):
    return Samples(torch.randn(n, WIDTH), torch.randint(C, (n,)), 2 * torch.randn(n, C))


def means():
    return torch.randn(C, C).softmax(dim=-1)


def prepared(**options):
    tgeo = ratio_alone(**options)
    tgeo.prepare(C, means() if tgeo.needs_class_means else None)
    return tgeo


@pytest.mark.parametrize(("given", "named"), [(None, "none"), (torch.rand(C, 3), (4, 3)), (torch.rand(C), (4,))])
def test_class_means_of_the_wrong_shape(given, named):
    with refused("class_means", (4, 4), named):
        ratio_alone().prepare(C, given)


def test_class_means_are_not_needed_without_the_inter_sample_triangle():
    tgeo, b = ratio_alone(inter_sample=False), batch(N)
    assert not tgeo.needs_class_means
    assert ratio_alone().needs_class_means
    tgeo.prepare(C, None)
    assert tgeo.alpha(LossInputs(torch.randn(N, C), b.teacher_logits, b.target, TAU)).shape == (N,)


def test_the_class_means_matter():
    tgeo, b = prepared(), batch(N)
    nn.init.normal_(tgeo.network.layers[-1][0])
    inputs = LossInputs(torch.randn(N, C), b.teacher_logits, b.target, TAU)
    before = tgeo.alpha(inputs)
    tgeo.class_means = means()
    assert not torch.equal(tgeo.alpha(inputs), before)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"vertices": False, "edges": False, "angles": False}, ["vertices"]),
        ({"encoding": "vector", "vertices": False, "edges": False}, ["edges"]),
        # the only triangle left has lost its S-T edge, and with it its angles
        (
            {"vertices": False, "edges": False, "angles": True, "student_teacher_edge": False, "inter_sample": False},
            ["angles"],
        ),
        ({"encoding": "polar"}, ["encoding", "polar"]),
        ({"update_interval": 0}, ["update_interval", 0]),
        ({"lr": -0.1}, ["lr", -0.1]),
        ({"ema_decay": -1}, ["ema_decay", -1]),
        ({"ema_decay": 1}, ["ema_decay", 1]),
        ({"outer_batch_size": 0}, ["outer_batch_size", 0]),
        ({"inner_samples": 0, "hypergradient": "forward"}, ["inner_samples", 0]),
        ({"hypergradient": "unrolled"}, ["ema_decay", "project_out_step_length"]),
        ({"hypergradient": "backward"}, ["backward"]),
    ],
)
def test_impossible_settings_are_refused_at_construction(options, values):
    with refused(*values):
        ratio_alone(**options)


def test_alpha_before_prepare():
    b = batch(N)
    with pytest.raises(RuntimeError, match="prepare"):
        ratio_alone().alpha(LossInputs(torch.randn(N, C), b.teacher_logits, b.target, TAU))


def test_a_teacher_is_needed():
    with refused("teacher"):
        prepared().alpha(LossInputs(torch.randn(N, C), None, torch.zeros(N, dtype=torch.int64), TAU))


@pytest.mark.parametrize("hidden", [(), (7,), (32, 16)])
@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_the_networks_shape(encoding, hidden):
    tgeo = prepared(encoding=encoding, hidden=hidden)
    widths = [num_features(C, encoding=encoding), *hidden, 1]
    assert isinstance(tgeo.network, RatioNetwork)
    assert [(w.shape, b.shape) for w, b in tgeo.network.layers] == [
        ((n_out, n_in), (n_out,)) for n_in, n_out in itertools.pairwise(widths)
    ]


# ---- very many classes


def many(c=40, kept=5, n=200):
    means = ClassMeans(c, kept)
    means.update((3 * torch.randn(n, c)).softmax(dim=-1), torch.arange(n) % c)
    return means.compute()


def test_sparse_class_means_are_used_as_the_coarsened_geometry(caplog):
    torch.manual_seed(0)
    table = many()
    tgeo = ratio_alone()
    with caplog.at_level("INFO", logger="tgeokd"):
        tgeo.prepare(40, table)
    (message,) = caplog.messages
    assert "40 classes" in message
    assert " 5 " in message
    nn.init.normal_(tgeo.network.layers[-1][0])
    z, t, y = torch.randn(N, 40), torch.randn(N, 40), torch.randint(40, (N,))
    delta = trilateral(z.softmax(-1), t.softmax(-1), y, table, encoding="scalar")
    torch.testing.assert_close(tgeo.alpha(LossInputs(z, t, y, TAU)), tgeo.network(delta, learn=False).sigmoid())


def test_omegas_size_and_features_do_not_depend_on_the_number_of_classes():
    small, large = ratio_alone(), ratio_alone()
    small.prepare(C, means())
    large.prepare(40, many())
    assert small.network.omega.shape == large.network.omega.shape


@pytest.mark.parametrize("inter_sample", [True, False])
def test_a_hundred_thousand_classes(inter_sample):
    c = 100_000
    tgeo = ratio_alone(inter_sample=inter_sample)
    table = None
    if inter_sample:
        gathered = ClassMeans(c)
        gathered.update(torch.full((2, c), 1 / c), torch.tensor([0, 1]))
        with pytest.warns(UserWarning, match="no training sample"):
            table = gathered.compute()
    tgeo.prepare(c, table)
    result = tgeo.loss(LossInputs(torch.randn(3, c), torch.randn(3, c), torch.tensor([0, 5, c - 1]), TAU))
    assert torch.equal(result.alpha, torch.full((3,), 0.5))
    tgeo.learn(result.weight, torch.ones(3))
    assert tgeo.network.omega.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"inter_sample": False}])
def test_the_vector_encoding_is_refused_for_very_many_classes(options, monkeypatch):
    monkeypatch.setattr(tgeo_module, "DENSE_CLASSES", 20)
    with refused("40", "encoding='scalar'"):
        ratio_alone(encoding="vector", **options).prepare(40, None if options else many())


def test_state_with_sparse_class_means_goes_round_through_a_file(tmp_path):
    torch.manual_seed(0)
    first, second = ratio_alone(), ratio_alone()
    first.prepare(40, many())
    second.prepare(40, many())
    inputs = LossInputs(torch.randn(N, 40), torch.randn(N, 40), torch.randint(40, (N,)), TAU)
    first.learn(first.loss(inputs).weight, torch.randn(N))
    nn.init.normal_(first.network.layers[-1][0])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(second.alpha(inputs), first.alpha(inputs))
    stored = (tmp_path / "state.pt").stat().st_size
    assert stored < 40 * 6 * 4 + 40 * 7 * 4 + 3 * 4 * first.network.omega.numel() + 8000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_in_another_precision_than_omegas(dtype):
    tgeo, b = prepared(), batch(N)
    alpha = tgeo.alpha(LossInputs(torch.randn(N, C, dtype=dtype), b.teacher_logits.to(dtype), b.target, TAU))
    assert torch.equal(alpha, torch.full_like(alpha, 0.5))


# ---- the paper's method, and the extensions


def test_the_papers_method_has_no_extension():
    paper = TGeoKD(paper=True, lr=0.01, hidden=(8,))
    assert (paper.outer, paper.update_interval, paper.hypergradient) == ("holdout", 1, "exact")
    assert (paper.corrects_labels, paper.prior, paper.penalty) == (False, False, 0.0)
    assert (paper.encoding, paper.estimator.direction) == ("vector", None)
    assert TGeoKD(paper=True, hypergradient="unrolled").hypergradient == "unrolled"  # exact as well


@pytest.mark.parametrize(
    "option",
    [
        {"outer": "union"}, {"update_interval": 2}, {"ema_decay": 0.9}, {"project_out_step_length": True},
        {"encoding": "scalar"}, {"encoding": "log"}, {"label": "posterior"}, {"prior": True}, {"penalty": 0.1},
        {"hypergradient": "last_layer"}, {"hypergradient": "auto"},
    ],
)  # fmt: skip
def test_what_is_not_in_the_paper_is_refused_with_it(option):
    ((name, value),) = option.items()
    with refused("paper=True", name, value):
        TGeoKD(paper=True, **option)


def test_a_state_of_other_extensions_is_refused():
    state = prepared().state_dict()
    with refused("ema_decay", "project_out_step_length"):
        prepared(ema_decay=0.0, project_out_step_length=False).load_state_dict(state)
