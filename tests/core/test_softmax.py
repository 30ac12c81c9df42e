"""Softmax along the faster dimension is softmax."""

from __future__ import annotations

import pytest
import torch

from tgeokd.core.softmax import FEW_CLASSES, MANY_ROWS, log_softmax, softmax


@pytest.mark.parametrize("rows", [1, MANY_ROWS - 1, MANY_ROWS, 1000])
@pytest.mark.parametrize("classes", [1, 2, FEW_CLASSES - 1, FEW_CLASSES, 40])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_values_and_gradient_are_those_of_torch(rows, classes, lead):
    generator = torch.Generator().manual_seed(rows + classes)
    logits = (30 * torch.randn(*lead, rows, classes, dtype=torch.float64, generator=generator)).requires_grad_()
    weights = torch.randn(*lead, rows, classes, dtype=torch.float64, generator=generator)
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        found, expected = ours(logits), theirs(logits, dim=-1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad((weights * found).sum(), logits)
        torch.testing.assert_close(gradient, torch.autograd.grad((weights * expected).sum(), logits)[0])


def test_one_row_of_logits_without_a_batch():
    logits = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(softmax(logits), logits.softmax(0))
