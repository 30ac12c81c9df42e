"""Exact hypergradients under bfloat16 autocast beside those in float32, for students of the sizes that are trained so."""

from __future__ import annotations

import pytest
import torch

from tgeokd.bilevel import Lookahead
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.data import InputSpec
from tgeokd.models import build_model

N, M, C, TAU = 48, 32, 10, 4.0
STUDENTS = {
    "conv": lambda: build_model("resnet8", inputs=InputSpec("array", (3, 16, 16)), num_classes=C),
    "mlp": lambda: build_model("mlp", inputs=InputSpec("array", (64,)), num_classes=C, hidden=[64, 32]),
}
SHAPES = {"conv": (3, 16, 16), "mlp": (64,)}
EPS = torch.finfo(torch.bfloat16).eps  # 0.0078: what one rounding costs


def hypergradient(kind: str, method: str, autocast: bool) -> torch.Tensor:
    torch.manual_seed(0)
    student = STUDENTS[kind]()
    x, held_out = torch.randn(N, *SHAPES[kind]), torch.randn(M, *SHAPES[kind])
    y, held_out_y = torch.randint(C, (N,)), torch.randint(C, (M,))
    teacher, alpha = 2 * torch.randn(N, C), torch.rand(N)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    look = Lookahead(student, optimizer, temperature=TAU, method=method)
    for _ in range(3):  # momentum, and batch statistics, as they are in the middle of a training
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = look.forward(x, y, teacher)
        optimizer.zero_grad()
        fuse(kd_loss(logits, teacher, TAU), gt_loss(logits, y), alpha).mean().backward()
        look.step()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = look.ratio_gradient(held_out, held_out_y, alpha)
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize("kind", list(STUDENTS))
@pytest.mark.parametrize("method", ["forward", "unrolled", "finite_difference"])
def test_autocast_costs_no_more_than_its_own_rounding(kind, method):
    exact, found = hypergradient(kind, "unrolled", False), hypergradient(kind, method, True)
    error = float((found - exact).norm() / exact.norm())
    assert error < 5 * EPS
    assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.999
    assert error > EPS / 100  # autocast was really on
