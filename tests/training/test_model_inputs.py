"""Models with one logit, and inputs of several tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_training import assert_close, assert_same, distiller_of, loader, mlp, validation_loader, weights
from torch import nn
from torch.optim import SGD


class OneLogit(nn.Module):
    """A binary model whose output has shape (N, 1) or (N,)."""

    def __init__(self, seed, flat):
        super().__init__()
        self.inner, self.flat = mlp(seed, classes=1), flat

    def forward(self, x):
        return self.inner(x).squeeze(-1) if self.flat else self.inner(x)


class TwoLogits(OneLogit):
    """The same model with the logits (0, z)."""

    def forward(self, x):
        z = self.inner(x)
        return torch.cat([torch.zeros_like(z), z], dim=-1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("method", ["ce", "kd", "ada", "wls", "tgeo", "rw"])
def test_one_logit_is_two_logits(method, flat):
    runs, evaluations = [], []
    for cls in (OneLogit, TwoLogits):
        distiller = distiller_of(method, student=cls(1, flat), teacher=cls(2, flat), momentum=0.9)
        distiller.fit(loader(classes=2, shuffle=True), loader(8, 4, classes=2, seed=7), epochs=2)
        runs.append(weights(distiller.student))
        evaluations.append(distiller.evaluate(loader(classes=2)))
    assert_close(*runs, rtol=0, atol=1e-6)
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)


def test_ce_with_one_logit_is_binary_cross_entropy():
    by_hand = OneLogit(1, flat=True)
    optimizer = SGD(by_hand.parameters(), 0.1)
    for _ in range(2):
        for x, y in loader(classes=2):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(by_hand(x), y.float()).backward()
            optimizer.step()
    student = OneLogit(1, flat=True)
    distiller_of("ce", student=student, teacher=OneLogit(2, flat=False)).fit(loader(classes=2), epochs=2)
    assert_close(weights(student), weights(by_hand), rtol=0, atol=1e-6)


class OfTwo(nn.Module):
    """A model of two inputs."""

    def __init__(self, seed, wrap=False):
        super().__init__()
        self.inner, self.wrap = mlp(seed), wrap

    def forward(self, left, right):
        logits = self.inner(torch.cat([left, right], dim=-1))
        return SimpleNamespace(logits=logits) if self.wrap else logits


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout", "rw"])
@pytest.mark.parametrize("kind", ["dict", "tuple", "dict with .logits", "mapping with labels"])
def test_inputs_of_several_parts(method, kind):
    def split(batches):
        parts = (({"right": x[:, 2:], "left": x[:, :2]}, y) for x, y in batches)
        if kind == "mapping with labels":
            return [{**x, "labels": y} for x, y in parts]
        return [((x["left"], x["right"]) if kind == "tuple" else x, y) for x, y in parts]

    wrap = kind == "dict with .logits"
    of_parts = distiller_of(method, student=OfTwo(1, wrap), teacher=OfTwo(2, wrap), momentum=0.9)
    history = of_parts.fit(split(loader()), split(validation_loader()), epochs=2)
    plain = distiller_of(method, momentum=0.9)
    expected = plain.fit([*loader()], [*validation_loader()], epochs=2)
    assert_same(weights(of_parts.student.inner), weights(plain.student))
    assert history["val_loss"] == expected["val_loss"]
