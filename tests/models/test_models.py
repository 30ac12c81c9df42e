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

SIX = InputSpec("array", (2, 3))


@pytest.mark.parametrize("hidden", [(), (16,), (32, 8, 5)])
@pytest.mark.parametrize("classes", [2, 10])
def test_shape_and_parameter_count(hidden, classes):
    model = mlp(inputs=InputSpec("array", (3, 4)), num_classes=classes, hidden=hidden)
    assert model(torch.zeros(5, 3, 4)).shape == (5, classes)
    widths = (12, *hidden, classes)
    assert sum(p.numel() for p in model.parameters()) == sum((a + 1) * b for a, b in pairwise(widths))


def test_logits_equal_those_of_a_forward_pass_in_numpy():
    torch.manual_seed(0)
    model = mlp(inputs=SIX, num_classes=3, hidden=(7, 4), dropout=0.5).eval()
    x = torch.randn(9, 2, 3)
    weights = [p.detach().double().numpy() for p in model.parameters()]
    h = x.reshape(9, 6).double().numpy()
    for w, b in zip(weights[:4:2], weights[1:4:2], strict=True):
        h = np.maximum(h @ w.T + b, 0)
    np.testing.assert_allclose(model(x).detach().numpy(), h @ weights[4].T + weights[5], atol=1e-6)


def test_dropout_is_optional():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3)
    without = mlp(inputs=SIX, num_classes=3, hidden=(50, 50)).train()
    assert torch.equal(without(x), without(x))
    with_dropout = mlp(inputs=SIX, num_classes=3, hidden=(50, 50), dropout=0.5).train()
    assert not torch.equal(with_dropout(x), with_dropout(x))
    assert [m.p for m in with_dropout if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_every_model_is_built_by_its_name():
    table, image = InputSpec("table", (2,), (3, 4)), InputSpec("array", (3, 32, 32))
    row = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    assert len(MODELS) > 20
    for name in MODELS:
        if name in ("mlp", "wide_deep", "bert"):
            assert build_model(name, inputs=table, num_classes=3).eval()(*row).shape == (2, 3), name
        elif name in ("embedding_bag", "text_encoder", "sentence_encoder"):
            continue  # tests/models/test_text_models.py
        else:
            with torch.device("meta"):
                model = build_model(name, inputs=image, num_classes=3).eval()
                assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3), name


@pytest.mark.parametrize(
    ("name", "options", "given"),
    [
        ("mpl", {}, "'mpl'.*'mlp'"),
        ("mlp", {"hiden": [3]}, "'hiden'.*'hidden'"),
        ("mlp", {"hidden": 3}, "hidden.* 3"),
        ("mlp", {"hidden": ["3"]}, "hidden.*'3'"),
        ("mlp", {"hidden": [5, -3]}, r"hidden.*\[5, -3\]"),
        ("mlp", {"dropout": True}, "dropout.*True"),
        ("mlp", {"dropout": -0.1}, r"dropout.*-0\.1"),
        ("mlp", {"embedding": 0}, "embedding.* 0"),
        ("resnet8", {"depth": 14}, "'depth'"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, given):
    with pytest.raises(InputError, match=given):
        build_model(name, inputs=InputSpec("array", (4,)), num_classes=3, **options)
