"""Models on tables: what they compute, and that the hypergradient goes through them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tgeokd.bilevel import ratio_gradient
from tgeokd.data.base import InputSpec
from tgeokd.models.bert import bert
from tgeokd.models.table import CategoryEmbedding, table_mlp
from tgeokd.utils.errors import InputError

SPEC = InputSpec("table", (3,), (4, 7))
BOTH, NUMBERS, CODES = SPEC, InputSpec("table", (3,)), InputSpec("table", (0,), (4, 7))
BUILD = {
    "mlp": lambda spec, **options: table_mlp(inputs=spec, num_classes=3, **{"hidden": (8, 5), **options}),
    "bert": lambda spec, **options: bert(
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
def test_every_parameter_learns_and_the_head_comes_last(name, spec):
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


def test_category_embedding_is_a_table_a_column():
    embedding = CategoryEmbedding((4, 7, 2), 5)
    tables = embedding.rows.weight.split([4, 7, 2])
    codes = torch.tensor([[0, 6, 1], [3, 0, 0]])
    expected = torch.stack([torch.stack([tables[j][row[j]] for j in range(3)]) for row in codes])
    assert torch.equal(embedding(codes), expected)


def test_mlp_by_hand():
    model = BUILD["mlp"](SPEC, hidden=(), embedding=2)
    numbers, codes = _batch(5, dtype=torch.float32)
    first, second = model.embedding.rows.weight.split([4, 7])
    features = torch.cat([numbers, first[codes[:, 0]], second[codes[:, 1]]], dim=1)
    torch.testing.assert_close(model(numbers, codes), features @ model.head.weight.T + model.head.bias)


def test_bert_tells_features_apart_and_reads_values():
    torch.manual_seed(0)
    model = BUILD["bert"](InputSpec("table", (2,), (4, 4))).eval()
    numbers, codes = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 2]])
    logits = model(numbers, codes)
    for other in ((numbers.flip(1), codes), (numbers, codes.flip(1)), (numbers + 1, codes)):
        assert not torch.allclose(model(*other), logits, atol=1e-7)
    assert torch.equal(model(numbers.repeat(3, 1), codes.repeat(3, 1))[1:2].round(decimals=5), logits.round(decimals=5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: table_mlp(inputs=InputSpec("array", (3,)), num_classes=2), "reads tables, not inputs of kind 'array'"),
        (lambda: bert(inputs=InputSpec("array", (3,)), num_classes=2), "reads tables, not inputs of kind 'array'"),
        (lambda: table_mlp(inputs=SPEC, num_classes=2, embedding=0), "embedding must be >= 1, not 0"),
        (lambda: bert(inputs=SPEC, num_classes=2, layers=0), "layers must be >= 1, not 0"),
        (lambda: bert(inputs=SPEC, num_classes=2, hidden=10, heads=4), "multiple of heads, not 10 with 4 heads"),
        (lambda: bert(inputs=SPEC, num_classes=2, dropout=1.0), "dropout must lie in [0, 1), not 1.0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)


def test_bert_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'tgeokd\[text\]'"):
        bert(inputs=SPEC, num_classes=2)
