"""MLP and BERT on tables: their logits and their hypergradient."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tgeokd.bilevel import ratio_gradient
from tgeokd.data.base import InputSpec
from tgeokd.models import build_model
from tgeokd.models.bert import TableBert
from tgeokd.models.mlp import mlp
from tgeokd.models.table import CategoryEmbedding
from tgeokd.utils.errors import InputError
from tgeokd.utils.registry import Registry

SPEC = InputSpec("table", (3,), (4, 7))
BOTH, NUMBERS, CODES = SPEC, InputSpec("table", (3,)), InputSpec("table", (0,), (4, 7))
BUILD = {
    "mlp": lambda spec, **options: mlp(inputs=spec, num_classes=3, **{"hidden": (8, 5), **options}),
    "bert": lambda spec, **options: TableBert(
        inputs=spec, num_classes=3, **{"layers": 2, "hidden": 8, "heads": 2, "intermediate": 12, **options}
    ),
}


def _batch(n, spec=SPEC, dtype=torch.float64):
    codes = [torch.randint(0, codes, (n,)) for codes in spec.categories]
    return torch.randn(n, *spec.shape, dtype=dtype), torch.stack(codes, 1) if codes else torch.empty(
        n, 0, dtype=torch.int64
    )


@pytest.mark.parametrize("spec", [BOTH, NUMBERS, CODES], ids=["both", "numbers", "codes"])
@pytest.mark.parametrize("name", BUILD)
def test_every_parameter_gets_a_gradient_and_the_head_is_last(name, spec):
    torch.manual_seed(0)
    model = BUILD[name](spec, dropout=0.0)
    logits = model(*_batch(200, spec, torch.float32))
    assert logits.shape == (200, 3)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if parameter.numel():
            assert parameter.grad.abs().sum() > 0, key
    assert isinstance(list(model.modules())[-1], nn.Linear)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", BUILD)
def test_forward_mode_agrees_with_unrolling(name, optimizer):
    torch.manual_seed(0)
    model = BUILD[name](SPEC, dropout=0.2).double()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3),
    }
    case = {
        "inputs": _batch(6),
        "target": torch.randint(0, 3, (6,)),
        "teacher_logits": torch.randn(6, 3, dtype=torch.float64),
        "alpha": torch.rand(6, dtype=torch.float64),
        "val_inputs": _batch(8),
        "val_target": torch.randint(0, 3, (8,)),
        "temperature": 2.0,
    }
    step = make[optimizer](model.parameters())
    forward = ratio_gradient(model, step, **case, method="forward")
    unrolled = ratio_gradient(model, step, **case, method="unrolled")
    assert unrolled.norm() > 1e-8
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


def test_category_embedding_is_one_table_per_column():
    embedding = CategoryEmbedding((4, 7, 2), 5)
    tables = embedding.rows.weight.split([4, 7, 2])
    codes = torch.tensor([[0, 6, 1], [3, 0, 0]])
    expected = torch.stack([torch.stack([tables[j][row[j]] for j in range(3)]) for row in codes])
    assert torch.equal(embedding(codes), expected)


def test_mlp_equals_a_forward_pass_written_here():
    model = BUILD["mlp"](SPEC, hidden=(), embedding=2)
    numbers, codes = _batch(5, dtype=torch.float32)
    first, second = model.embedding.rows.weight.split([4, 7])
    features = torch.cat([numbers, first[codes[:, 0]], second[codes[:, 1]]], dim=1)
    torch.testing.assert_close(model(numbers, codes), features @ model.head.weight.T + model.head.bias)


def test_bert_depends_on_values_and_columns():
    torch.manual_seed(0)
    model = BUILD["bert"](InputSpec("table", (2,), (4, 4))).eval()
    numbers, codes = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 2]])
    logits = model(numbers, codes)
    for other in ((numbers.flip(1), codes), (numbers, codes.flip(1)), (numbers + 1, codes)):
        assert not torch.allclose(model(*other), logits, atol=1e-7)
    assert torch.equal(model(numbers.repeat(3, 1), codes.repeat(3, 1))[1:2].round(decimals=5), logits.round(decimals=5))


@pytest.mark.parametrize(
    ("name", "inputs", "options", "given"),
    [
        ("bert", InputSpec("array", (3,)), {}, r"array.*\(3,\)"),
        ("mlp", InputSpec("table", (0,)), {}, "column"),
        ("bert", SPEC, {"layers": 0}, "layers.* 0"),
        ("bert", SPEC, {"hidden": 10, "heads": 4}, "hidden.* 10.* 4"),
        ("bert", SPEC, {"dropout": 1.0}, "dropout.* 1.0"),
    ],
)
def test_impossible_models_are_refused(name, inputs, options, given):
    with pytest.raises(InputError, match=given):
        build_model(name, inputs=inputs, num_classes=2, **options)


def test_bert_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tgeokd.models.bert", raising=False)
    registry = Registry("model", "tgeokd.models")
    with pytest.raises(InputError, match=r"'bert'.*tgeokd\[text\]"):
        registry["bert"]
