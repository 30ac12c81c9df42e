"""The model of wrong labels: against Bayes' rule by hand, scipy's minimiser, and known rates of confusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tgeokd.core import label_noise
from tgeokd.core.label_noise import CalibrationSample, LabelNoise, LabelNoiseFit, calibration, known_labels
from tgeokd.utils.errors import InputError

C = 4


def fitted(logits, target, val_logits, val_target, classes=C):
    fit = LabelNoiseFit(classes)
    sample = CalibrationSample(classes)
    sample.add(val_logits, val_target)
    fit.calibrate([sample])
    for rows in torch.arange(len(target)).split(7):
        fit.update(logits[rows], target[rows])
    return fit.compute()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 5.0))
def test_posterior_is_bayes_rule(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(30, C, generator=generator)
    y, val_y = (torch.randint(C, (n,), generator=generator) for n in (30, 40))
    noise = fitted(z, y, scale * torch.randn(40, C, generator=generator), val_y)
    p = np.exp(np.array(z * noise.scale + noise.bias, dtype=np.float64))
    p /= p.sum(axis=1, keepdims=True)
    # rates[k, c]: how often a sample of class c has the label k
    rates = np.array([[p[y.numpy() == k, c].sum() / p[:, c].sum() for c in range(C)] for k in range(C)])
    expected = p * rates.clip(1e-9, 1 - 1e-9)[y.numpy()]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(noise.posterior(z, y).exp(), expected, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(noise.calibrated(z).exp(), p, rtol=1e-3, atol=1e-6)


def test_rates_of_confusion_are_found_from_a_certain_teacher():
    generator = np.random.default_rng(0)
    rates = np.array([[0.7, 0.1, 0.0], [0.3, 0.6, 0.2], [0.0, 0.3, 0.8]])  # of labels (rows) by class
    truth = generator.integers(0, 3, 20_000)
    label = np.array([generator.choice(3, p=rates[:, c]) for c in truth])
    z = 20.0 * F.one_hot(torch.from_numpy(truth), 3).float()
    noise = fitted(z, torch.from_numpy(label), z[:50], torch.from_numpy(truth[:50]), classes=3)
    np.testing.assert_allclose(noise.log_rates.exp(), rates, atol=0.02)


def test_a_doubtful_teacher_is_corrected_by_the_label_and_a_certain_one_corrects_it():
    noise = LabelNoise(
        torch.ones(()), torch.zeros(3), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).log()
    )
    z, y = torch.tensor([[0.2, 0.0, 0.0], [9.0, 0.0, 0.0]]), torch.tensor([2, 2])
    assert noise.posterior(z, y).argmax(dim=1).tolist() == [2, 0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_is_the_minimum_that_scipy_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(C, (300,), generator=generator)
    z = 3 * torch.randn(300, C, generator=generator) + 2 * F.one_hot(y, C)
    scale, bias = calibration(z, y)

    def loss(x):
        scores = z.double() * float(np.exp(x[0])) + torch.from_numpy(x[1:])
        return float(F.cross_entropy(scores, y)) + label_noise.SHRINKAGE * float((x**2).sum())

    best = minimize(loss, np.zeros(1 + C), method="L-BFGS-B").fun
    assert loss(np.array([np.log(float(scale)), *bias.double().numpy()])) == pytest.approx(best, abs=1e-6)
    assert F.cross_entropy(z * scale + bias, y) < F.cross_entropy(z, y)


def test_a_large_validation_set_is_drawn_from(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(C, (4000,), generator=generator)
    z = 3 * torch.randn(4000, C, generator=generator) + 2 * F.one_hot(y, C)
    whole = calibration(z, y)
    monkeypatch.setattr(label_noise, "CALIBRATED_ON", 2000 * C)
    sample = CalibrationSample(C)
    for rows in torch.arange(4000).split(7):
        sample.add(z[rows], y[rows])
        assert sum(len(part[0]) for part in sample._kept) <= 4000
    part = CalibrationSample.joined([sample])
    assert part[0].shape == (2000, C)
    scale = calibration(*part)[0]
    assert not torch.equal(scale, whole[0])
    torch.testing.assert_close(scale, whole[0], rtol=0.1, atol=0.05)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 30), min_size=1, max_size=4), most=st.integers(1, 40))
def test_a_choice_of_samples_has_each_once_in_order_and_all_where_they_fit(seed, counts, most):
    """With several processes too; the rows are recognised by their logits."""
    total = 0
    samples = []
    for rank, count in enumerate(counts):
        sample = CalibrationSample(2, rank)
        sample.most = most
        for row in range(total, total + count):
            sample.add(torch.tensor([[float(row), 0.0]]), torch.tensor([row % 2]))
        total += count
        if count:
            samples.append(sample)
    if not samples:
        return
    logits, target = CalibrationSample.joined(samples)
    rows = logits[:, 0].long().tolist()
    assert len(rows) == min(total, most)
    assert rows == sorted(set(rows))
    assert target.tolist() == [row % 2 for row in rows]


def test_every_sample_is_as_likely_to_be_chosen():
    chosen = torch.zeros(40)
    for seed in range(500):
        sample = CalibrationSample(2, rank=seed)
        sample.most = 10
        for row in range(40):
            sample.add(torch.tensor([[float(row), 0.0]]), torch.tensor([0]))
        chosen[CalibrationSample.joined([sample])[0][:, 0].long()] += 1
    assert chosen.min() > 125 - 5 * 125**0.5
    assert chosen.max() < 125 + 5 * 125**0.5


def test_very_many_classes_have_one_rate_each(monkeypatch):
    """Labels other than the class itself are taken to be equally likely."""
    generator = torch.Generator().manual_seed(0)
    z, y = 3 * torch.randn(500, C, generator=generator), torch.randint(C, (500,), generator=generator)
    dense = fitted(z, y, z[:100], z[:100].argmax(1))
    monkeypatch.setattr(label_noise, "DENSE_CLASSES", C - 1)
    sparse = fitted(z, y, z[:100], z[:100].argmax(1))
    assert sparse.log_rates.shape == (C,)
    torch.testing.assert_close(sparse.log_rates, dense.log_rates.diagonal(), rtol=1e-5, atol=1e-6)
    own = sparse.log_rates.exp()
    rates = ((1 - own) / (C - 1)).repeat(C, 1).fill_diagonal_(0) + torch.diag(own)
    expected = LabelNoise(dense.scale, dense.bias, rates.log()).posterior(z, y)
    torch.testing.assert_close(sparse.posterior(z, y), expected, rtol=1e-4, atol=1e-4)


def test_known_labels_are_almost_certain():
    log_probs = torch.randn(5, C).log_softmax(-1)
    y, known = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([True, False, True, False, False])
    found = known_labels(log_probs, y, known)
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(5))
    assert torch.equal(found[~known], log_probs[~known])
    assert bool((found.exp()[known, y[known]] > 0.999).all())


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN"):
        calibration(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_processes_that_see_parts_together_find_the_whole():
    z, y = torch.randn(40, C), torch.randint(C, (40,))
    parts = [LabelNoiseFit(C), LabelNoiseFit(C)]
    parts[0].update(z[:15], y[:15])
    parts[1].update(z[15:], y[15:])
    sums = iter([parts[0]._joint + parts[1]._joint, parts[0]._classes + parts[1]._classes])
    parts[0].reduce(lambda _: next(sums))
    whole = LabelNoiseFit(C)
    whole.update(z, y)
    torch.testing.assert_close(parts[0].compute().log_rates, whole.compute().log_rates)
