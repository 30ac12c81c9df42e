"""Teachers in a training run: modules, callables, probabilities and stored predictions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_training import (
    CLASSES,
    assert_close,
    assert_same,
    data,
    distiller_of,
    loader,
    mlp,
    refused,
    validation_loader,
    weights,
    without_seconds,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import AdaptiveKD, ReweightingKD, TGeoKD, VanillaKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.teachers import StoredPredictions


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(2, norm=True, dropout=True)
        self.calls = []

    def forward(self, x):
        self.calls.append((self.training or self.inner.training, torch.is_grad_enabled(), len(x)))
        return self.inner(x)


@pytest.mark.parametrize("method", ["kd", "tgeo", "rw", "wls"])
def test_the_teacher_is_in_eval_mode_gets_no_gradient_and_stays_as_it_is(method):
    teacher = Watched().train()
    before = weights(teacher)
    distiller_of(method, teacher=teacher).fit(loader(), validation_loader(), epochs=2)
    assert_same(weights(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.calls
    assert not any(training or grad for training, grad, _ in teacher.calls)


def test_a_teacher_put_back_into_training_mode_is_still_run_in_eval_mode():
    teacher = mlp(2, norm=True)
    distiller = distiller_of(teacher=teacher)
    teacher.train()
    before = weights(teacher)
    distiller.fit(loader(), epochs=1)
    assert_same(weights(teacher), before)


def test_the_teacher_is_run_only_where_it_is_needed():
    teacher = Watched()
    distiller_of("ce", teacher=teacher).fit(loader(), epochs=2)
    assert len(teacher.calls) <= 1  # once for the number of classes
    teacher.calls.clear()
    distiller_of("kd", teacher=teacher).fit(loader(), validation_loader(), epochs=2)
    # each training sample once an epoch; before that the first batch, and the comparison with the labels
    assert sum(n for _, _, n in teacher.calls) <= 2 * 24 + 8 + (24 + 12)


def test_a_teacher_of_probabilities_trains_as_the_teacher_of_logits():
    runs = []
    for probs in (False, True):
        teacher = nn.Sequential(mlp(2), nn.Softmax(dim=-1)) if probs else mlp(2)
        distiller = distiller_of(TGeoKD(), teacher=teacher, teacher_probs=probs)
        distiller.fit(loader(shuffle=True), validation_loader(), epochs=2)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=0, atol=1e-6)


def test_a_binary_teacher_of_one_probability():
    runs = []
    teacher = mlp(2, classes=1)
    for probs in (False, True):
        distiller = distiller_of(
            student=mlp(1, classes=1),
            teacher=(lambda x: teacher(x).detach().sigmoid()) if probs else teacher,
            teacher_probs=probs,
        )
        distiller.fit(loader(classes=2), epochs=1)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=0, atol=1e-6)


def test_a_hard_teacher_with_zero_probabilities_trains():
    def teacher(x):
        return F.one_hot(mlp(2)(x).argmax(dim=-1), CLASSES).float()

    history = distiller_of(teacher=teacher, teacher_probs=True).fit(loader(), epochs=2)
    assert all(math.isfinite(loss) for loss in history["train_loss"])


def test_any_callable_is_a_teacher():
    runs = []
    model = mlp(2).eval()
    for teacher in (model, lambda x: model(x).detach()):
        distiller = distiller_of("kd", teacher=teacher)
        distiller.fit(loader(shuffle=True), epochs=2)
        runs.append(weights(distiller.student))
    assert_same(*runs)


def test_a_teacher_in_double_precision_gives_the_same_ratios():
    model = mlp(2).double().eval()

    def teacher(x):
        return model(x.double()).detach()

    distiller = distiller_of("kd", teacher=teacher)
    distiller.fit(loader(), epochs=1)
    other = distiller_of("kd")
    other.fit(loader(), epochs=1)
    assert_close(weights(distiller.student), weights(other.student), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_tgeo_takes_a_teacher_in_double_precision(encoding):
    model = mlp(2).double().eval()
    distiller = distiller_of(TGeoKD(encoding=encoding), teacher=lambda x: model(x.double()).detach())
    distiller.fit(loader(), validation_loader(), epochs=1)


# ---- sample ids and stored predictions


class Steps(nn.Module):
    """A network whose logits are whole 64ths: the same whatever batch a sample comes in."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(2)

    def forward(self, x):
        return (64 * self.inner(x)).round() / 64


def named(n, seed, first, **options):
    """Batches with ids, which are far apart and in no order."""
    x, y = data(n, seed)
    ids = first + 7 * torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return DataLoader(ArrayDataset(x, y, ids), 8, **options)


def stored_of(teacher, *loaders):
    """The teacher's logits, computed sample by sample."""
    samples = [sample for part in loaders for x, _, ids in part for sample in zip(x, ids, strict=True)]
    with torch.no_grad():
        logits = torch.stack([teacher(x[None])[0] for x, _ in samples])
    return StoredPredictions(logits, torch.stack([name for _, name in samples]))


def trained(method, teacher, *, ids=True, **options):
    train, val = named(24, 0, 1000, shuffle=True), named(12, 7, 5000)
    if not ids:
        train, val = [DataLoader(TensorDataset(p.dataset.inputs, p.dataset.target), 8) for p in (train, val)]
    distiller = distiller_of(method(), teacher=teacher, momentum=0.9, **options)
    history = distiller.fit(train, val, epochs=3, seed=4)
    return without_seconds(history), distiller


@pytest.mark.parametrize(
    "method",
    [
        VanillaKD,
        AdaptiveKD,
        ReweightingKD,
        TGeoKD,
        lambda: TGeoKD(outer="union"),
        lambda: TGeoKD(outer="train", outer_batch_size=5),
        lambda: TGeoKD(encoding="vector", hypergradient="last_layer"),
    ],
    ids=["kd", "ada", "rw", "tgeo", "tgeo union", "tgeo train", "tgeo vector"],
)
def test_stored_predictions_train_exactly_as_the_teacher_they_are_of(method):
    teacher = Steps()
    stored = stored_of(teacher, named(24, 0, 1000), named(12, 7, 5000))
    live, by_live = trained(method, teacher)
    kept, by_kept = trained(method, stored)
    assert kept == live
    assert_same(weights(by_kept.student), weights(by_live.student))
    assert live[0]["alpha"] is not None
    train = named(24, 0, 1000)
    if method is not ReweightingKD:
        assert torch.equal(by_kept.fusion_ratios(train), by_live.fusion_ratios(train))


def test_stored_predictions_are_found_by_id_not_by_position():
    teacher = Steps()
    stored = stored_of(teacher, named(24, 0, 1000), named(12, 7, 5000))
    moved = StoredPredictions(stored.lookup(stored.ids), stored.ids.roll(1))
    assert trained(VanillaKD, moved)[0] != trained(VanillaKD, stored)[0]


def test_ids_change_nothing_for_a_network_as_teacher():
    with_ids = distiller_of("kd")
    x, y = data()
    a = with_ids.fit([(x, y, torch.arange(24))], epochs=2)
    without = distiller_of("kd")
    b = without.fit([(x, y)], epochs=2)
    assert_same(weights(with_ids.student), weights(without.student))
    assert a["train_loss"] == b["train_loss"]


def test_stored_predictions_need_ids(tmp_path):
    stored = StoredPredictions(torch.zeros(36, CLASSES), torch.arange(36))
    with refused("(inputs, target, ids)"):
        distiller_of("kd", teacher=stored).fit(loader(), validation_loader(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout"])
def test_a_sample_that_is_not_stored_is_named(tmp_path, method):
    x, y = data()
    stored = StoredPredictions(torch.zeros(36, CLASSES), torch.arange(36))
    train = [(x, y, torch.arange(24) + 20)]
    with refused("sample 36", "0 to 35"):
        distiller_of(method, teacher=stored).fit(train, validation_loader(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stored_predictions_of_other_classes_are_refused():
    x, y = data()
    stored = StoredPredictions(torch.zeros(24, 5), torch.arange(24))
    with refused(3, 5):
        distiller_of("kd", teacher=stored).fit([(x, y, torch.arange(24))], epochs=1)
