"""`ada` by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_training import refused

from tgeokd import AdaptiveKD, LossInputs
from tgeokd.core.geometry.class_means import ClassMeans


def inputs_of(teacher_probs, target):
    teacher = torch.as_tensor(teacher_probs, dtype=torch.float64).log()
    return LossInputs(torch.zeros_like(teacher), teacher, torch.as_tensor(target), temperature=4.0)


def test_sample_margin_by_hand():
    probs = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1 - 2e-9, 1e-9, 1e-9]]
    # 0.5 - (0.3 + 0.2) / 2; 0.3 - 0.35 and 0.2 - 0.4 are clipped; a uniform teacher has no margin; a sure one has 1
    found = AdaptiveKD().alpha(inputs_of(probs, [0, 1, 2, 1, 0]))
    assert found.tolist() == pytest.approx([0.25, 0.0, 0.0, 0.0, 1.0], abs=1e-8)


def test_two_classes():
    # with two classes the margin is 2 p_y - 1
    found = AdaptiveKD().alpha(inputs_of([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55]], [0, 1, 1]))
    assert found.tolist() == pytest.approx([0.8, 0.0, 0.1])


def test_the_ratio_enters_the_usual_fusion():
    inputs = inputs_of([[0.5, 0.3, 0.2]], [0])  # temperature 4, a student that knows nothing
    softened = np.array([0.5, 0.3, 0.2]) ** (1 / 4)
    softened /= softened.sum()
    kl = sum(p * math.log(p / (1 / 3)) for p in softened)
    result = AdaptiveKD().loss(inputs)
    assert result.loss.item() == pytest.approx(0.25 * 16 * kl + 0.75 * math.log(3))
    assert result.alpha.item() == pytest.approx(0.25)


def test_class_margin_is_the_clipped_mean_of_the_unclipped_sample_margins():
    rng = np.random.default_rng(0)
    n, c = 60, 4
    target = np.arange(n) % c
    logits = rng.normal(size=(n, c))
    logits[np.arange(n), target] += np.array([2.0, 0.5, 0.1, -1.5])[target]  # the teacher is wrong about class 3
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = np.array([probs[target == k].mean(0) for k in range(c)])

    margins = [p[y] - np.delete(p, y).mean() for p, y in zip(probs, target, strict=True)]
    unclipped = np.array([np.mean([m for m, y in zip(margins, target, strict=True) if y == k]) for k in range(c)])
    assert unclipped[3] < 0 < unclipped[0]
    assert min(margins) < 0  # so clipping each sample first would give another mean

    method = AdaptiveKD(level="class")
    assert method.needs_class_means
    assert not AdaptiveKD(level="sample").needs_class_means
    method.prepare(c, torch.from_numpy(table), torch.device("cpu"))
    found = method.alpha(inputs_of(np.full((5, c), 1 / c), [3, 2, 1, 0, 0]))  # the sample's own prediction is not read
    np.testing.assert_allclose(found.numpy(), np.maximum(unclipped, 0)[[3, 2, 1, 0, 0]], rtol=1e-9)


def test_class_level_before_prepare_is_refused():
    with pytest.raises(RuntimeError, match="prepare"):
        AdaptiveKD(level="class").alpha(inputs_of([[0.5, 0.5]], [0]))


def test_an_unknown_level_is_refused():
    with refused("level", "batch"):
        AdaptiveKD(level="batch")


def test_class_margins_of_a_sparse_table_are_those_of_the_full_one():
    torch.manual_seed(0)
    probs, target = torch.rand(400, 40, dtype=torch.float64).softmax(dim=-1), torch.arange(400) % 40
    found = []
    for kept in (None, 5):
        means = ClassMeans(40, kept=kept)
        means.update(probs, target)
        method = AdaptiveKD(level="class")
        method.prepare(40, means.compute())
        found.append(method.alpha(inputs_of(probs[:40], list(range(40)))))
    torch.testing.assert_close(*found)
