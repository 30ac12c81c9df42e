"""Models of timm and torchvision. Nothing is downloaded: the download functions are replaced."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision

from tgeokd.data.base import InputSpec
from tgeokd.models import build_model
from tgeokd.models.hub import hub_model
from tgeokd.utils.errors import InputError

IMAGES = InputSpec("array", (3, 32, 32))


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet18",
        "timm:test_vit3.r160_in1k",
        "torchvision:mobilenet_v3_small",
        "torchvision:squeezenet1_1",
        "torchvision:shufflenet_v2_x0_5",
    ],
)
def test_logits_have_the_classes_of_the_data(name):
    options = {"img_size": 32} if "vit" in name else {}
    model = hub_model(name, inputs=IMAGES, num_classes=7, **options)
    assert model.training
    assert model(torch.randn(4, 3, 32, 32)).shape == (4, 7)


def test_the_model_is_that_of_the_library():
    torch.manual_seed(0)
    found = hub_model("torchvision:resnet18", inputs=IMAGES, num_classes=10)
    torch.manual_seed(0)
    expected = torchvision.models.resnet18(num_classes=10)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(images), expected.eval()(images))
    assert (
        sum(p.numel() for p in hub_model("timm:resnet18", inputs=IMAGES, num_classes=1000).parameters()) == 11_689_512
    )


def test_options_reach_the_library():
    model = hub_model("timm:resnet18", inputs=IMAGES, num_classes=3, drop_rate=0.25)
    assert model.drop_rate == 0.25
    model = hub_model("torchvision:mobilenet_v3_small", inputs=IMAGES, num_classes=3, dropout=0.75)
    assert model.classifier[2].p == 0.75


def test_auxiliary_heads_of_torchvision_are_off():
    model = hub_model("torchvision:googlenet", inputs=InputSpec("array", (3, 64, 64)), num_classes=3)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_the_check_of_a_model_does_not_change_its_batch_norms():
    model = hub_model("torchvision:shufflenet_v2_x0_5", inputs=IMAGES, num_classes=3)
    assert all(not value.any() for name, value in model.state_dict().items() if name.endswith("running_mean"))


# ---- pretrained


def head_and_body(state, head):
    return (
        {name: value for name, value in state.items() if name.startswith(head)},
        {name: value for name, value in state.items() if not name.startswith(head)},
    )


@pytest.mark.parametrize(
    ("name", "head", "classes"),
    [
        ("mobilenet_v3_small", "classifier.3.", 1000),
        ("mobilenet_v3_small", "classifier.3.", 7),
        ("squeezenet1_1", "classifier.1.", 7),
        ("googlenet", "fc.", 7),
        ("inception_v3", "fc.", 7),
    ],
)
def test_pretrained_torchvision(monkeypatch, name, head, classes):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    stored = torchvision.models.get_model(name, weights=None, **options).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: stored)
    inputs = InputSpec("array", (3, 96, 96))
    model = hub_model(f"torchvision:{name}", inputs=inputs, num_classes=classes, pretrained=True)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 96, 96)).shape == (2, classes)
    found_head, found_body = head_and_body(model.state_dict(), head)
    assert all(
        torch.equal(value, stored[key])
        for key, value in found_body.items()
        if "running" not in key and "num_" not in key
    )
    kept = all(
        value.shape == stored[key].shape and torch.equal(value, stored[key]) for key, value in found_head.items()
    )
    assert kept is (classes == 1000)


@pytest.mark.parametrize("classes", [1000, 7])
def test_pretrained_timm(monkeypatch, classes):
    stored = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(stored))
    model = hub_model("timm:resnet18", inputs=IMAGES, num_classes=classes, pretrained=True)
    found_head, found_body = head_and_body(model.state_dict(), "fc.")
    assert all(torch.equal(value, stored[key]) for key, value in found_body.items())
    kept = all(
        value.shape == stored[key].shape and torch.equal(value, stored[key]) for key, value in found_head.items()
    )
    assert kept is (classes == 1000)


@pytest.mark.parametrize(
    ("name", "download"),
    [
        ("timm:resnet18", "timm.models._builder.load_state_dict_from_hf"),
        ("torchvision:resnet18", "torchvision.models._api.load_state_dict_from_url"),
    ],
)
def test_weights_that_cannot_be_downloaded(monkeypatch, name, download):
    def unreachable(*_, **__):
        raise URLError("Name or service not known\nand more")

    monkeypatch.setattr(download, unreachable)
    with pytest.raises(InputError, match=rf"'{name}'.*Name or service not known"):
        hub_model(name, inputs=IMAGES, num_classes=7, pretrained=True)


# ---- refused


@pytest.mark.parametrize(
    ("name", "options", "given"),
    [
        ("timm:resnet81", {}, "'resnet81'.*'resnet"),
        ("torchvision:resnet81", {}, "'resnet81'.*'resnet"),
        ("torchvision:", {}, "''"),
        ("torchvision:fcn_resnet50", {}, "'fcn_resnet50'"),
        ("hub:resnet18", {}, "'hub'.*timm, torchvision"),
        ("timm:resnet18.no_such_tag", {}, r"'resnet18\.no_such_tag'"),
        ("timm:resnet18", {"drop_rat": 0.1}, "'resnet18'.*drop_rat"),
        ("torchvision:resnet18", {"drop_rat": 0.1}, "'resnet18'.*drop_rat"),
        ("timm:resnet18", {"pretrained": "yes"}, "pretrained.*'yes'"),
        ("torchvision:vit_b_32", {}, r"vit_b_32.*\(3, 32, 32\).*224"),
        ("timm:resnet18", {"features_only": True}, r"list.*\(1, 3, 32, 32\)"),
        ("timm:resnet18", {"checkpoint_path": "net.pth"}, "'checkpoint_path'"),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "net.pth"}}, "'pretrained_cfg_overlay'"),
    ],
)
def test_wrong_names_and_options(name, options, given):
    with pytest.raises(InputError, match=given) as caught:
        build_model(name, inputs=IMAGES, num_classes=7, **options)
    assert "\n" not in str(caught.value)


def test_other_inputs_than_images():
    with pytest.raises(InputError, match=r"timm:resnet18.*\(64,\)"):
        hub_model("timm:resnet18", inputs=InputSpec("array", (64,)), num_classes=7)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}.*tgeokd\[vision\]"):
        hub_model(f"{library}:resnet18", inputs=IMAGES, num_classes=7)
