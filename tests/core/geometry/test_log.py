"""The logarithmic encoding: against numpy, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgeokd.core.geometry import ClassMeans
from tgeokd.core.geometry.log import log_features, num_log_features
from tgeokd.core.geometry.scalar import SparseClassMeans

N = 8


@pytest.mark.parametrize("classes", [2, 5, 40])
@pytest.mark.parametrize("with_means", [True, False])
def test_each_number(classes, with_means):
    torch.manual_seed(0)
    z, t = 3 * torch.randn(N, classes, dtype=torch.float64), 3 * torch.randn(N, classes, dtype=torch.float64)
    y, evidence = torch.randint(classes, (N,)), torch.randn(N, dtype=torch.float64)
    means = torch.randn(classes, classes, dtype=torch.float64).softmax(-1) if with_means else None
    found = log_features(z, t, y, means, evidence).numpy()
    assert found.shape == (N, num_log_features(inter_sample=with_means))
    for i in range(N):
        S, T = (np.exp(v[i].numpy() - np.logaddexp.reduce(v[i].numpy())) for v in (z, t))
        label, top = int(y[i]), int(T.argmax())
        expected = [
            *(np.log(S[label]), np.log(T[label]), np.log(S[top]), np.log(T[top])),
            *((S * np.log(S)).sum(), (T * np.log(T)).sum(), np.sqrt(((S - T) ** 2).sum()), float(evidence[i])),
        ]
        if means is not None:
            expected += [float(np.log(means[a, b])) for a, b in ((label, label), (label, top), (top, label))]
        np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)


def test_sparse_class_means_spread_what_they_lack():
    torch.manual_seed(0)
    classes, kept = 30, 4
    gathered = ClassMeans(classes, kept=kept)
    probs = (4 * torch.randn(300, classes)).softmax(-1)
    gathered.update(probs, torch.arange(300) % classes)
    table = gathered.compute()
    full = table.to_dense()
    missing = (1 - full.sum(dim=1, keepdim=True)).clamp(min=0) / (classes - kept - 1)
    full = torch.where(full == 0, missing, full)
    z, t, y, evidence = torch.randn(N, classes), torch.randn(N, classes), torch.randint(classes, (N,)), torch.zeros(N)
    found = log_features(z, t, y, SparseClassMeans.of(table), evidence)
    torch.testing.assert_close(found, log_features(z, t, y, full, evidence), rtol=1e-3, atol=1e-3)


def test_no_gradient_and_certain_predictions_stay_finite():
    z = torch.tensor([[80.0, -80.0], [0.0, 0.0]], requires_grad=True)
    found = log_features(z, z, torch.tensor([1, 0]), torch.eye(2), torch.zeros(2))
    assert not found.requires_grad
    assert found.isfinite().all()
