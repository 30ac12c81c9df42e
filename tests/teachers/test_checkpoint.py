"""Weights of a teacher with the names of their classes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tgeokd.core.model_call import class_logits
from tgeokd.teachers.checkpoint import class_names_of, load_teacher_weights
from tgeokd.training.checkpoint import write_weights
from tgeokd.utils.errors import InputError

NAMES = ("cat", "dog", "eel")
OTHER = ("eel", "cat", "dog")  # of the weights
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def net(seed=1, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, outputs))


def saved(folder, how, names=OTHER, model=None):
    """Weights, and the names of their classes in one of the places where they may stand."""
    path = folder / {"pt": "t.pt", "run": "student.safetensors"}.get(how, "t.safetensors")
    model = net() if model is None else model
    if how == "pt":
        torch.save(model.state_dict(), path)
    else:
        write_weights(path, model, names if how == "metadata" else ())
    if how != "metadata":
        sidecar = folder / ("results.json" if how == "run" else f"{path.stem}.json")
        sidecar.write_text(json.dumps({"class_names": names, "other": 1}))
    return path


@pytest.mark.parametrize("how", ["metadata", "sidecar", "pt", "run"])
def test_classes_are_put_into_the_order_of_the_labels(tmp_path, how, caplog):
    path = saved(tmp_path, how)
    assert class_names_of(path) == OTHER
    loaded = net(2).train()
    load_teacher_weights(loaded, path, NAMES, lambda: X)
    assert loaded.training
    torch.testing.assert_close(loaded.eval()(X), net().eval()(X)[:, [1, 2, 0]])
    assert "eel, cat, dog into cat, dog, eel" in caplog.text


@pytest.mark.parametrize("names", [(), NAMES])
def test_the_same_order_and_unknown_names_change_nothing(tmp_path, names, caplog):
    path = saved(tmp_path, "metadata", NAMES if names else OTHER)
    loaded = net(2)
    load_teacher_weights(loaded, path, names, lambda: X)
    assert torch.equal(loaded.eval()(X), net().eval()(X))
    assert not caplog.text
    save_file({key: value.clone() for key, value in net().state_dict().items()}, tmp_path / "plain.safetensors")
    assert class_names_of(tmp_path / "plain.safetensors") == ()


def test_two_classes_of_one_logit_are_swapped(tmp_path):
    path = saved(tmp_path, "metadata", ("yes", "no"), net(outputs=1))
    loaded = net(2, 1)
    load_teacher_weights(loaded, path, ("no", "yes"), lambda: X)
    expected = class_logits(net(outputs=1).eval(), X).softmax(dim=-1)[:, [1, 0]]
    torch.testing.assert_close(class_logits(loaded.eval(), X).softmax(dim=-1), expected)


def test_classes_of_other_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="eel") as caught:
        load_teacher_weights(net(), saved(tmp_path, "metadata"), ("cat", "dog", "cod"), lambda: X)
    assert "t.safetensors" in str(caught.value)


def test_a_network_whose_last_layer_cannot_be_moved_is_refused(tmp_path):
    def scaled():
        return nn.Sequential(net(), nn.BatchNorm1d(3))

    path = saved(tmp_path, "metadata", model=scaled())
    with pytest.raises(InputError, match="another order"):
        load_teacher_weights(scaled(), path, NAMES, lambda: X)


@pytest.mark.parametrize("text", ["{", '{"class_names": "cat"}', '{"class_names": [1, 2, 3]}'])
def test_names_of_another_form_are_refused(tmp_path, text):
    path = saved(tmp_path, "sidecar")
    path.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=r"t\.json"):
        class_names_of(path)


def test_another_json_file_is_not_asked_for_names(tmp_path):
    path = saved(tmp_path, "sidecar")
    path.with_suffix(".json").write_text('{"epochs": 3}')
    (tmp_path / "results.json").write_text('{"class_names": ["a"]}')
    assert class_names_of(path) == ()
