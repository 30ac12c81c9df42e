"""`kd` by hand."""

from __future__ import annotations

import math

import pytest
import torch
from small_training import refused

from tgeokd import LossInputs, VanillaKD

LN3 = math.log(3)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
def test_kd_by_hand(alpha):
    # softened at 2: student (1/4, 3/4), teacher (1/2, 1/2): tau^2 KL = 4 * 1/2 ln(4/3); unsoftened student (1/10, 9/10)
    inputs = LossInputs(torch.tensor([[0.0, 2 * LN3]]), torch.zeros(1, 2), torch.tensor([0]), temperature=2.0)
    result = VanillaKD(alpha=alpha).loss(inputs)
    expected = alpha * 2 * math.log(4 / 3) + (1 - alpha) * math.log(10)
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert result.alpha.tolist() == pytest.approx([alpha])


def test_the_ratio_is_the_same_for_all_samples_at_all_times():
    method = VanillaKD(alpha=0.3)
    for epoch in (0, 5, 9):
        inputs = LossInputs(torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 1.0, epoch, 10)
        assert method.alpha(inputs).tolist() == pytest.approx([0.3] * 4)


def test_the_default_is_the_usual_recipe():
    assert VanillaKD().constant == 0.9


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_alpha_outside_its_range_is_refused(alpha):
    with refused("alpha", alpha):
        VanillaKD(alpha=alpha)


def test_kd_without_a_teacher_is_refused():
    with refused("teacher"):
        VanillaKD().loss(LossInputs(torch.zeros(1, 2), None, torch.tensor([0]), 1.0))
