"""The CIFAR models against tensors and logits of the published architectures, and against forward passes written here.

``cifar_tensors.json`` contains names and shapes of all tensors in the order of a published state dict, for 100 classes, and
the first four logits that a transcription of RepDistiller's layers computes in float64 from the weights and images made below.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tgeokd.bilevel import ratio_gradient
from tgeokd.data.base import InputSpec
from tgeokd.models import MODELS
from tgeokd.models.cifar.wide_stem_resnet import Bottleneck, WideStemResNet
from tgeokd.utils.errors import InputError

CIFAR = InputSpec("array", (3, 32, 32))
PUBLISHED = json.loads((Path(__file__).parent / "cifar_tensors.json").read_text())
# number of trainable parameters with 100 classes, counted on the published architectures
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "ResNet18": 11_220_132,
    "ResNet34": 21_328_292,
    "ResNet50": 23_705_252,
    "ResNet101": 42_697_380,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
    "MobileNetV2": 812_836,
}
SMALL = ("resnet8", "resnet8x4", "wrn_16_1", "vgg8", "ResNet18", "ShuffleV1", "ShuffleV2", "MobileNetV2")


def build(name, num_classes=100, inputs=CIFAR):
    return MODELS[name](inputs=inputs, num_classes=num_classes)


def known_weights(listed, seed=0):
    """Weights that are the same with every version: the stream of numpy's ``RandomState`` is frozen."""
    random, state = np.random.RandomState(seed), {}
    for name, shape in listed.items():
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, dtype=np.int64)
        elif len(shape) > 1:
            value = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            value = random.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * random.standard_normal(shape)
        state[name] = torch.from_numpy(np.asarray(value))
    return state


def known_images(size):
    return torch.from_numpy(np.random.RandomState(size).standard_normal((2, 3, size, size)))


# ---- names, shapes, numbers of parameters


def test_names_used_in_the_literature_exist():
    assert set(PARAMETERS) <= set(MODELS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_have_the_published_names_shapes_and_order(name):
    with torch.device("meta"):
        model = build(name)
    found = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert found == list(map(tuple, PUBLISHED[name]["tensors"].items()))


# ---- logits


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_those_of_the_published_architecture(name):
    model = build(name).double().eval()
    model.load_state_dict(known_weights(PUBLISHED[name]["tensors"]))
    for size, expected in PUBLISHED[name]["logits"].items():
        with torch.no_grad():
            found = model(known_images(int(size)))
        np.testing.assert_allclose(found[:, :4], expected, rtol=1e-7)


def conv(x, state, name, **settings):
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **settings)


def norm(x, state, name):
    mean, var, scale, shift = (
        state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift


def residual_forward(x, state, blocks):
    """He et al.: conv-norm-relu-conv-norm, plus the input or its projection, relu."""
    x = F.relu(norm(conv(x, state, "conv1", padding=1), state, "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(conv(x, state, f"{at}.conv1", stride=stride, padding=1), state, f"{at}.bn1"))
            out = norm(conv(out, state, f"{at}.conv2", padding=1), state, f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                x = norm(conv(x, state, f"{at}.downsample.0", stride=stride), state, f"{at}.downsample.1")
            x = F.relu(out + x)
    return F.linear(F.avg_pool2d(x, 8).flatten(1), state["fc.weight"], state["fc.bias"])


def wide_residual_forward(x, state, blocks):
    """Zagoruyko and Komodakis: norm-relu-conv-norm-relu-conv; a projection takes the activated input."""
    x = conv(x, state, "conv1", padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = F.relu(norm(x, state, f"{at}.bn1"))
            out = conv(active, state, f"{at}.conv1", stride=stride, padding=1)
            out = conv(F.relu(norm(out, state, f"{at}.bn2")), state, f"{at}.conv2", padding=1)
            if f"{at}.convShortcut.weight" in state:
                x = conv(active, state, f"{at}.convShortcut", stride=stride)
            x = out + x
    x = F.avg_pool2d(F.relu(norm(x, state, "bn1")), 8)
    return F.linear(x.flatten(1), state["fc.weight"], state["fc.bias"])


def vgg_forward(x, state, convolutions):
    """Simonyan and Zisserman with batch norm: four blocks at 32, 16, 8 and 4 pixels, the fifth at 4 pixels, too."""
    for block in range(5):
        for index in range(convolutions[block]):
            x = conv(x, state, f"block{block}.{3 * index}", padding=1)
            x = F.relu(norm(x, state, f"block{block}.{3 * index + 1}"))
        if block < 3:
            x = F.max_pool2d(x, 2)
    return F.linear(F.avg_pool2d(x, 4).flatten(1), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(
    ("name", "forward", "layout"),
    [
        ("resnet20", residual_forward, 3),
        ("resnet8x4", residual_forward, 1),
        ("wrn_16_1", wide_residual_forward, 2),
        ("wrn_16_2", wide_residual_forward, 2),
        ("vgg8", vgg_forward, (1, 1, 1, 1, 1)),
        ("vgg11", vgg_forward, (1, 1, 2, 2, 2)),
    ],
)
def test_logits_equal_those_of_a_forward_pass_written_here(name, forward, layout):
    model = build(name, num_classes=7).double().eval()
    state = known_weights({key: tuple(value.shape) for key, value in model.state_dict().items()}, seed=1)
    model.load_state_dict(state)
    images = known_images(32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), forward(images, state, layout), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(16, 16), (48, 32), (64, 64)])
def test_other_image_sizes(name, shape):
    model = build(name, num_classes=5, inputs=InputSpec("array", (3, *shape))).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, *shape)).shape == (2, 5)


# ---- initialization


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "ResNet18", "MobileNetV2"])
def test_convolutions_have_he_initialization_with_fan_out(name):
    torch.manual_seed(0)
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2_000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_heads_are_initialized_as_published():
    torch.manual_seed(0)
    for head in (build("vgg8").classifier, build("MobileNetV2").classifier[0]):
        assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert not head.bias.any()
    head = build("wrn_40_2").fc
    assert not head.bias.any()
    assert float(head.weight.detach().abs().max()) == pytest.approx(1 / math.sqrt(128), rel=0.05)  # uniform


# ---- the hypergradient


def bottleneck_net(*, inputs, num_classes):
    return WideStemResNet(Bottleneck, (1, 1, 1, 1), inputs=inputs, num_classes=num_classes)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "bottleneck", "ShuffleV1", "ShuffleV2", "MobileNetV2"])
def test_forward_mode_equals_unrolling_and_the_head_is_found(name):
    torch.manual_seed(0)
    inputs = InputSpec("array", (3, 8, 8))
    builder = bottleneck_net if name == "bottleneck" else MODELS[name]
    student = builder(inputs=inputs, num_classes=3).double().train()
    case = {
        "inputs": torch.randn(4, 3, 8, 8, dtype=torch.float64),
        "target": torch.tensor([0, 1, 2, 1]),
        "teacher_logits": torch.randn(4, 3, dtype=torch.float64),
        "alpha": torch.rand(4, dtype=torch.float64),
        "val_inputs": torch.randn(2, 3, 8, 8, dtype=torch.float64),
        "val_target": torch.tensor([2, 0]),
        "temperature": 4.0,
    }
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    forward, unrolled, last = (
        ratio_gradient(student, optimizer, **case, method=method) for method in ("forward", "unrolled", "last_layer")
    )
    assert unrolled.norm() > 1e-8
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()
    assert last.isfinite().all()
    assert last.norm() > 0


# ---- refused inputs


@pytest.mark.parametrize(
    "inputs",
    [
        InputSpec("array", (64,)),
        InputSpec("array", (1, 28, 28)),
        InputSpec("array", (32, 32, 3)),
        InputSpec("array", (3, 0, 32)),
        InputSpec("table", (3,), (4, 5)),
    ],
)
@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1", "vgg8", "ResNet18", "ShuffleV1", "MobileNetV2"])
def test_other_inputs_than_images_are_refused(name, inputs):
    with pytest.raises(InputError, match=f"{inputs.kind}.*{re.escape(str(inputs.shape))}"):
        build(name, inputs=inputs)


def test_images_that_are_too_small_for_the_pooling_are_refused():
    assert build("vgg8", inputs=InputSpec("array", (3, 8, 8))).eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 100)
    with pytest.raises(InputError, match=r"8x8.*\(3, 7, 9\)"):
        build("vgg8", inputs=InputSpec("array", (3, 7, 9)))
