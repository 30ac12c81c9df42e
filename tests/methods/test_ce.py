"""`ce` by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tgeokd import CrossEntropy, LossInputs


def test_ce_is_the_label_term_alone():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [0.0, 0.0]])
    result = CrossEntropy().loss(LossInputs(logits, torch.randn(3, 2), torch.tensor([0, 1, 1]), temperature=4.0))
    assert result.loss.tolist() == pytest.approx([math.log(4), math.log(4 / 3), math.log(2)])
    assert result.alpha is None


def test_ce_needs_no_teacher_and_passes_its_gradient_on():
    logits = torch.zeros(1, 4, requires_grad=True)
    result = CrossEntropy().loss(LossInputs(logits, None, torch.tensor([2]), temperature=1.0))
    result.loss.sum().backward()
    assert logits.grad.tolist() == [[0.25, 0.25, -0.75, 0.25]]
    assert not CrossEntropy.needs_teacher
    assert CrossEntropy().outer is None
