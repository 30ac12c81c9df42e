"""Metrics, predictions and fusion ratios of a student, against scikit-learn and numpy."""

from __future__ import annotations

import math
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from small_training import CLASSES, assert_same, data, distiller_of, loader, mlp, refused, validation_loader, weights
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller
from tgeokd.core.metrics import Metrics, running
from tgeokd.utils.errors import DivergenceError


def test_evaluation_agrees_with_scikit_learn():
    student = mlp(1, norm=True, dropout=True)
    distiller = distiller_of("ce", student=student)
    distiller.fit(loader(), epochs=2)
    x, y = data(50, seed=9)
    before = weights(student)
    found = distiller.evaluate(DataLoader(TensorDataset(x, y), 7))
    with torch.no_grad():
        probs = student.eval()(x).softmax(dim=-1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(y, probs.argmax(axis=1)))
    assert found["nll"] == pytest.approx(log_loss(y, probs, labels=[0, 1, 2]), rel=1e-5)
    assert_same(weights(student), before)


def test_evaluation_before_training_leaves_the_modes_alone():
    student = mlp(1, norm=True)
    student[1].eval()
    modes = [module.training for module in student.modules()]
    distiller = distiller_of("ce", student=student)
    distiller.evaluate(loader())
    assert [module.training for module in student.modules()] == modes


def test_an_empty_evaluation_is_refused():
    with refused("empty"):
        distiller_of("ce").evaluate([])


def test_labels_out_of_range_in_an_evaluation_before_training():
    x, y = data()
    y[0] = 7
    with refused("evaluation loader", 7, CLASSES):
        distiller_of("ce").evaluate([(x, y)])


def test_predictions_come_in_the_loader_s_order():
    distiller = distiller_of("kd", student=mlp(1, norm=True, dropout=True))
    x, y = data()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    batches = [(x[rows], y[rows], rows) for rows in order.split(5)]
    logits, target = distiller.predict(batches)
    assert torch.equal(target, y[order])
    distiller.student.eval()
    torch.testing.assert_close(logits, distiller.student(x).detach()[order])
    assert logits.shape == (24, CLASSES)
    assert logits.std(dim=0).min() > 0.01  # rows that can be told apart


def test_an_evaluation_keeps_the_logits_of_no_batch(monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 1)  # otherwise small batches are put together
    alive, most = weakref.WeakSet(), []

    class Noted(nn.Linear):
        def forward(self, x):
            most.append(len(alive))
            logits = super().forward(x)
            alive.add(logits)
            return logits

    student = Noted(4, CLASSES)
    expected = distiller_of("ce", student=student).evaluate(loader(24, 24))
    alive.clear(), most.clear()
    assert distiller_of("ce", student=student).evaluate(loader(24, 3)) == pytest.approx(expected, rel=1e-12)
    assert len(most) == 8
    assert max(most) <= 1


def test_an_evaluation_on_an_accelerator_names_the_row_that_is_not_finite():
    # as there, nothing is looked at before the end
    x, y = data(24)
    student = mlp(1)
    with torch.no_grad():
        student[-1].weight.fill_(math.inf)
    unread = mock.patch("tgeokd.training.evaluate.all_finite", return_value=True)
    with unread, refused("student", "row 0", "evaluation loader", error=DivergenceError):
        distiller_of("ce", student=student).evaluate([(x[:5], y[:5]), (x[5:], y[5:])])


# ---- metrics of choice


TWO = Metrics(("nll", "auc", "accuracy"), primary="auc")


def test_chosen_metrics_are_those_of_scikit_learn_and_stand_in_the_epochs():
    train, val = loader(classes=2), loader(12, 6, seed=7, classes=2)
    distiller = distiller_of("kd", student=mlp(1, classes=2), teacher=mlp(2, classes=2), metrics=TWO)
    history = distiller.fit(train, val, epochs=3)
    logits, target = distiller.predict(val)
    found = distiller.evaluate(val)
    assert list(found) == ["nll", "auc", "accuracy"]
    probs = logits.double().softmax(dim=1).numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(target, probs[:, 1]))
    assert found["nll"] == pytest.approx(log_loss(target, probs))
    assert history[-1]["val_auc"] == found["auc"]
    assert history[-1]["val_accuracy"] == found["accuracy"] == pytest.approx(accuracy_score(target, probs.argmax(1)))
    assert history[-1]["val_loss"] == found["nll"]
    assert len(set(history["val_auc"]) | set(history["val_loss"])) > 3  # they move


def test_metrics_without_what_every_epoch_records_are_refused():
    with refused("accuracy", "macro_f1, nll"):
        distiller_of("kd", metrics=Metrics(("macro_f1", "nll"), primary="nll"))


# ---- fusion ratios


@pytest.mark.parametrize("method", ["kd", "ada", "wls", "tgeo"])
def test_ratios_come_in_the_order_of_the_loader(method):
    distiller = distiller_of(method, student=mlp(1, dropout=True))
    distiller.fit(loader(shuffle=True), validation_loader(), epochs=2)
    x, y = data(30, seed=13)
    whole = distiller.fusion_ratios([(x, y)])
    assert whole.shape == (30,)
    torch.testing.assert_close(distiller.fusion_ratios(DataLoader(TensorDataset(x, y), 7)), whole)
    torch.testing.assert_close(distiller.fusion_ratios([(x.flip(0), y.flip(0))]), whole.flip(0))
    if method != "kd":
        assert whole.std() > 0


def test_ratios_of_ada_by_hand():
    distiller = distiller_of("ada")
    distiller.fit(loader(), epochs=1)
    x, y = data(9, seed=13)
    probs = mlp(2)(x).softmax(dim=-1).detach().numpy()
    margin = [max(0.0, p[k] - np.delete(p, k).mean()) for p, k in zip(probs, y, strict=True)]
    assert distiller.fusion_ratios([(x, y)]).tolist() == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize("method", ["ce", "rw"])
def test_methods_whose_ratios_are_no_function_of_the_sample_raise(method):
    distiller = distiller_of(method)
    distiller.fit(loader(), validation_loader(), epochs=1)
    with pytest.raises(NotImplementedError):
        distiller.fusion_ratios(loader())


def test_ratios_of_ce_without_a_teacher():
    student = mlp(1)
    distiller = Distiller(student, None, "ce", SGD(student.parameters(), 0.1), accelerator="cpu", progress=False)
    distiller.fit(loader(), epochs=1)
    with pytest.raises(NotImplementedError):
        distiller.fusion_ratios(loader())


def test_ratios_of_an_empty_loader_are_refused():
    with refused("empty"):
        distiller_of("kd").fusion_ratios([])
