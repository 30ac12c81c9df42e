from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tgeokd.data.base import InputSpec
from tgeokd.models import MODELS, build_model
from tgeokd.models.mlp import mlp
from tgeokd.utils.errors import InputError

FOUR, SIX = InputSpec("array", (4,)), InputSpec("array", (2, 3))


@pytest.mark.parametrize("hidden", [(), (16,), (32, 8, 5)])
@pytest.mark.parametrize("classes", [2, 10])
def test_shape_and_parameter_count(hidden, classes):
    model = mlp(inputs=InputSpec("array", (3, 4)), num_classes=classes, hidden=hidden)
    assert model(torch.zeros(5, 3, 4)).shape == (5, classes)
    widths = (12, *hidden, classes)
    assert sum(p.numel() for p in model.parameters()) == sum((a + 1) * b for a, b in pairwise(widths))


def test_the_output_is_that_of_a_hand_written_forward_pass():
    torch.manual_seed(0)
    model = mlp(inputs=SIX, num_classes=3, hidden=(7, 4), dropout=0.5).eval()
    x = torch.randn(9, 2, 3)
    weights = [p.detach().double().numpy() for p in model.parameters()]
    h = x.reshape(9, 6).double().numpy()
    for w, b in zip(weights[:4:2], weights[1:4:2], strict=True):
        h = np.maximum(h @ w.T + b, 0)
    np.testing.assert_allclose(model(x).detach().numpy(), h @ weights[4].T + weights[5], atol=1e-6)


def test_dropout_is_there_where_asked_for_and_only_then():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3)
    without = mlp(inputs=SIX, num_classes=3, hidden=(50, 50)).train()
    assert torch.equal(without(x), without(x))
    with_dropout = mlp(inputs=SIX, num_classes=3, hidden=(50, 50), dropout=0.5).train()
    assert not torch.equal(with_dropout(x), with_dropout(x))
    assert [m.p for m in with_dropout if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_a_model_by_its_name():
    model = build_model("mlp", inputs=FOUR, num_classes=3, hidden=[5], dropout=0)
    assert sum(p.numel() for p in model.parameters()) == 5 * 5 + 6 * 3
    assert model(torch.zeros(2, 4)).shape == (2, 3)


def test_every_registered_model_is_built_by_its_name():
    table, image = InputSpec("table", (2,), (3, 4)), InputSpec("array", (3, 32, 32))
    row = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    for name in MODELS:
        spec, inputs = (table, row) if name in ("mlp", "wide_deep", "bert") else (image, (torch.zeros(2, 3, 32, 32),))
        assert build_model(name, inputs=spec, num_classes=3).eval()(*inputs).shape == (2, 3), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpl", {}, r"^unknown model 'mpl'; did you mean 'mlp'\? known: .*resnet20, .*mlp, "),
        ("mlp", {"hiden": [3]}, r"unknown option of model 'mlp' 'hiden'; did you mean 'hidden'\?"),
        ("mlp", {"hidden": 3}, r"hidden of model 'mlp' must be of type tuple"),
        ("mlp", {"hidden": ["3"]}, r"hidden of model 'mlp'\[0\] must be of type int, not '3'"),
        ("mlp", {"dropout": True}, r"dropout of model 'mlp' must be of type float, not True"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build_model(name, inputs=FOUR, num_classes=3, **options)


@pytest.mark.parametrize("options", [{"hidden": [0]}, {"hidden": [5, -3]}, {"dropout": 2.0}, {"dropout": -0.1}])
def test_impossible_values_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        build_model("mlp", inputs=FOUR, num_classes=3, **options)
