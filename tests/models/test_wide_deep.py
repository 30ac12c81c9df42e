from __future__ import annotations

import pytest
import torch
from realdata import data_dir
from sklearn.metrics import roc_auc_score
from torch import nn

from tgeokd.bilevel import MicroBatch, ratio_gradient
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.data import TASKS
from tgeokd.data.base import InputSpec
from tgeokd.models import build_model
from tgeokd.models.wide_deep import WideDeep
from tgeokd.utils.errors import InputError

TABLE = InputSpec("table", (3,), (4, 5, 7))


def batch(n: int = 12, inputs: InputSpec = TABLE, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, size, (n,), generator=generator) for size in inputs.categories]
    categorical = torch.stack(codes, dim=1) if codes else torch.empty(n, 0, dtype=torch.int64)
    return torch.randn(n, *inputs.shape, generator=generator, dtype=dtype), categorical


def model(inputs: InputSpec = TABLE, num_classes: int = 2, **options) -> nn.Module:
    torch.manual_seed(1)
    built = WideDeep(inputs=inputs, num_classes=num_classes, **{"embedding": 3, "hidden": (6, 5), **options}).double()
    for parameter in built.parameters():  # the wide part starts at zero
        nn.init.normal_(parameter, std=0.4)
    return built


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize(("m", "k"), [(3, 3), (0, 3), (3, 0)])
def test_logits_equal_a_sum_over_the_columns(num_classes, m, k):
    inputs = InputSpec("table", (m,), (4, 5, 7)[:k])
    net = model(inputs, num_classes)
    numeric, categorical = batch(inputs=inputs)
    weights = net.state_dict()
    starts = [0, 4, 9]
    for row in range(12):
        deep = numeric[row]
        wide = torch.zeros(num_classes - 1, dtype=torch.float64)
        for column in range(k):
            code = starts[column] + int(categorical[row, column])
            deep = torch.cat([deep, weights["embedding.rows.weight"][code]])
            wide = wide + weights["wide_categories.rows.weight"][code]
        if m:
            wide = wide + weights["wide_numeric.weight"] @ numeric[row]
        for layer in (0, 2):
            deep = (weights[f"deep.{layer}.weight"] @ deep + weights[f"deep.{layer}.bias"]).relu()
        expected = weights["head.weight"] @ torch.cat([deep, wide]) + weights["head.bias"]
        assert torch.allclose(net(numeric, categorical)[row], expected, atol=1e-12)


def test_the_wide_scores_start_as_the_logits_of_their_classes():
    torch.manual_seed(0)
    net = WideDeep(inputs=TABLE, num_classes=3, embedding=2, hidden=(4,)).double()
    numeric, categorical = batch()
    before = net(numeric, categorical)
    with torch.no_grad():
        net.wide_categories.rows.weight[0:4] = torch.tensor([0.5, -2.0])  # every code of the first column
    assert torch.allclose(net(numeric, categorical) - before, torch.tensor([0, 0.5, -2.0], dtype=torch.float64))


def test_the_state_dict_contains_parameters_only():
    net = model()
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("inputs", [TABLE, InputSpec("table", (0,), (4, 5, 7))])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_forward_mode_equals_unrolling(inputs, optimizer):
    net = model(inputs)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3),
    }
    optim = make[optimizer](net.parameters())
    x, val = batch(12, inputs), batch(8, inputs)
    generator = torch.Generator().manual_seed(3)
    arguments = {
        "inputs": x,
        "target": torch.randint(0, 2, (12,), generator=generator),
        "teacher_logits": torch.randn(12, 2, generator=generator, dtype=torch.float64),
        "alpha": torch.rand(12, generator=generator, dtype=torch.float64),
        "val_inputs": val,
        "val_target": torch.randint(0, 2, (8,), generator=generator),
        "temperature": 2.0,
    }
    forward = ratio_gradient(net, optim, **arguments, method="forward")
    unrolled = ratio_gradient(net, optim, **arguments, method="unrolled")
    assert unrolled.norm() > 1e-8
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()
    assert ratio_gradient(net, optim, **arguments, method="last_layer").norm() > 0


def test_the_last_layer_is_found_as_the_head():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    estimator = LastLayerEstimator().resolve(net, optimizer, MicroBatch.begin(net, batch()))
    assert estimator.head is net.head


def test_the_wide_part_learns_single_effects_and_the_deep_part_interactions():
    """The labels are the exclusive-or of two columns, or depend on one column."""
    inputs = InputSpec("table", (0,), (4, 4))
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(8, 1)
    numeric = torch.empty(len(codes), 0)

    def accuracy(target: torch.Tensor, *, wide_alone: bool) -> float:
        torch.manual_seed(0)
        net = WideDeep(inputs=inputs, num_classes=2, embedding=4, hidden=(16,))
        if wide_alone:
            nn.init.zeros_(net.head.weight[:, :16].data)
            net.embedding.requires_grad_(False)
            net.deep.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.03)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(numeric, codes), target).backward()
            optimizer.step()
            if wide_alone:
                nn.init.zeros_(net.head.weight[:, :16].data)
        return float((net(numeric, codes).argmax(1) == target).double().mean())

    exclusive = (codes[:, 0] % 2) ^ (codes[:, 1] % 2)
    assert accuracy(exclusive, wide_alone=False) == 1
    assert accuracy(exclusive, wide_alone=True) < 0.8
    assert accuracy(codes[:, 0] // 2, wide_alone=True) == 1


@pytest.mark.parametrize(
    ("inputs", "options", "given"),
    [
        (InputSpec("array", (3, 32, 32)), {}, r"array.*\(3, 32, 32\)"),
        (InputSpec("table", (0,)), {}, "column"),
        (TABLE, {"embedding": 0}, "embedding.* 0"),
        (TABLE, {"hidden": []}, r"hidden.*\[\]"),
        (TABLE, {"hidden": [3, 0]}, r"hidden.*\[3, 0\]"),
        (TABLE, {"dropout": 1.0}, r"dropout.* 1\.0"),
        (TABLE, {"embeding": 3}, "'embeding'.*'embedding'"),
    ],
)
def test_impossible_models_are_refused(inputs, options, given):
    with pytest.raises(InputError, match=given):
        build_model("wide_deep", inputs=inputs, num_classes=2, **options)


@pytest.mark.slow
@pytest.mark.realdata
def test_adult_is_learned():
    torch.manual_seed(0)
    data = TASKS["adult"](data_dir=data_dir(), seed=0, train=8000)
    net = build_model("wide_deep", inputs=data.inputs, num_classes=2, embedding=4, hidden=(32, 16))
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    for _ in range(5):
        for inputs, target, *_ in data.training_loader(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(*inputs), target).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        outputs = [(net(*inputs), target) for inputs, target, *_ in data.ordered_loader(data.test, 4096)]
    probability = torch.cat([logits for logits, _ in outputs]).softmax(1)[:, 1]
    # the classes are 76 : 24; the best models on this data reach about 0.92
    assert roc_auc_score(torch.cat([target for _, target in outputs]), probability) > 0.89
