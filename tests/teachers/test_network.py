"""Modules, callables and classifiers as teachers."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import nn

from tgeokd.data.batch import Batch
from tgeokd.teachers import NetworkTeacher, ProbaTeacher, StoredPredictions, as_teacher
from tgeokd.utils.errors import InputError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
BATCH = Batch(X, torch.arange(6) % 3, torch.arange(6))


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


def test_a_module_computes_in_eval_mode_without_a_graph():
    model = module().train()
    logits = as_teacher(model).logits(BATCH)
    assert not logits.requires_grad
    assert torch.equal(logits, model.eval()(X))


def test_probabilities_become_logits_and_every_call_enters_the_context():
    entered = []

    @contextmanager
    def context():
        entered.append(True)
        yield

    teacher = as_teacher(lambda x: x[:, :3].softmax(dim=-1), probs=True, context=context)
    torch.testing.assert_close(teacher.logits(BATCH).softmax(dim=-1), X[:, :3].softmax(dim=-1))
    assert entered == [True]


def test_the_fingerprint_distinguishes_weights_and_probabilities_from_logits():
    model, other = module(), module()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    found = [as_teacher(copy.deepcopy(model)), as_teacher(other), as_teacher(model, probs=True)]
    assert len({as_teacher(model).fingerprint(), *(teacher.fingerprint() for teacher in found)}) == 3
    assert as_teacher(lambda x: x).fingerprint() is None


def test_a_teacher_stays_itself_and_a_fitted_classifier_becomes_one():
    stored = StoredPredictions(X[:, :3], torch.arange(6))
    assert as_teacher(stored) is stored
    classifier = GaussianNB().fit(X.numpy(), BATCH.target.numpy())
    teacher = as_teacher(classifier)
    assert isinstance(teacher, ProbaTeacher)
    expected = classifier.predict_proba(X.numpy())
    np.testing.assert_allclose(teacher.logits(BATCH).softmax(dim=-1).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_callable_with_predict_proba_is_called():
    class Both(nn.Module):
        predict_proba = None

        def forward(self, x):
            return x[:, :3]

    teacher = as_teacher(Both())
    assert isinstance(teacher, NetworkTeacher)
    assert torch.equal(teacher.logits(BATCH), X[:, :3])


@pytest.mark.parametrize("given", [None, 3, "resnet56"])
def test_anything_else_is_refused(given):
    with pytest.raises(InputError, match=type(given).__name__):
        as_teacher(given)
