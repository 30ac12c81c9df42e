"""NaN and infinite values: the message names side, loader, sample, term and step, wherever they come in."""

from __future__ import annotations

import math

import pytest
import torch
from small_training import data, distiller_of, mlp, refused
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller, LossInputs, Method
from tgeokd.methods import SampleLoss
from tgeokd.utils.errors import DivergenceError

ROW, ID = 13, 1013


def loader(n=24, *, bad=None, ids=True, seed=0):
    x, y = data(n, seed)
    if bad is not None:
        x[ROW, 2] = bad
    parts = (x, y, torch.arange(1000, 1000 + n)) if ids else (x, y)
    return DataLoader(TensorDataset(*parts), 8)


class Norm(nn.Module):
    """With batch norm, one bad input makes the logits of its whole batch bad."""

    def __init__(self):
        super().__init__()
        self.net = mlp(1, norm=True)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("method", ["ce", "kd", "tgeo, holdout"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_feature_is_named_not_the_teacher(method, bad):
    with refused(f"sample {ID}", "training loader", "entry 2", str(bad)):
        distiller_of(method, student=Norm()).fit(loader(bad=bad), loader(12, seed=7), epochs=1)


def test_the_row_is_named_without_ids_and_the_step():
    with refused("row 5", "step 1", "entry 2"):  # row 13 is the sixth of the second batch
        distiller_of("kd").fit(loader(bad=math.nan, ids=False), epochs=1)


def test_the_entry_of_a_mapping_is_named():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(1)

        def forward(self, left, right):
            return self.net(torch.cat([left, right], dim=1))

    x, y = data(8)
    x[3, 3] = math.nan
    batch = {"left": x[:, :2], "right": x[:, 2:], "labels": y, "ids": torch.arange(50, 58)}
    with refused("sample 53", "'right'", "entry 1"):
        distiller_of("kd", student=Takes(), teacher=Takes()).fit([batch], epochs=1)


def test_bad_validation_and_evaluation_inputs_are_named():
    with refused(f"sample {ID}", "validation loader"):
        distiller_of("tgeo, holdout").fit(loader(), loader(bad=math.nan), epochs=1)
    with refused(f"sample {ID}", "evaluation loader"):
        distiller_of("kd").evaluate(loader(bad=math.nan))


class BadFor(nn.Module):
    """NaN logits for one sample."""

    def __init__(self, x):
        super().__init__()
        self.x, self.net = x, mlp(2)

    def forward(self, x):
        return self.net(x).masked_fill((x == self.x).all(dim=1, keepdim=True), math.nan)


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout"])
def test_a_bad_teacher_is_named_with_the_sample(method):
    with refused("teacher", f"sample {ID}", "training loader"):
        distiller_of(method, teacher=BadFor(data(24)[0][ROW])).fit(loader(), loader(12, seed=7), epochs=1)


def test_a_student_that_diverges_is_not_the_user_s_input():
    with refused("student", f"sample {ID}", "step 1", "clip_norm", error=DivergenceError):
        distiller_of("kd", student=BadFor(data(24)[0][ROW])).fit(loader(), epochs=1)
    with refused("student", f"sample {ID}", "evaluation loader", error=DivergenceError):
        distiller_of("kd", student=BadFor(data(24)[0][ROW])).evaluate(loader())


class Infinite(Method):
    """Scales both terms, so that one overflows."""

    name = "infinite"

    def loss(self, inputs: LossInputs) -> SampleLoss:
        return SampleLoss(inputs.gt * 1e38 * 10, None)


def test_a_term_that_overflows_is_named():
    student = mlp(1)
    with torch.no_grad():
        student[-1].bias[0] = 3e38  # a label term of 3e38 is a number; the teacher term is tau times as large
    with refused("teacher term", "sample 1000", "step 0", error=DivergenceError):
        Distiller(
            student, mlp(2), "kd", torch.optim.SGD(student.parameters(), 1.0), accelerator="cpu", progress=False
        ).fit(loader(), epochs=1)
    with pytest.raises(DivergenceError, match="loss of sample 1000"):
        distiller_of(Infinite(), student=mlp(1)).fit(loader(), epochs=1)
