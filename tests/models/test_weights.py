from __future__ import annotations

import argparse
import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tgeokd.data.base import InputSpec
from tgeokd.models import build_model
from tgeokd.models.weights import load_weights
from tgeokd.utils.errors import InputError


def net():
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2)))


@pytest.fixture
def source():
    """A model whose tensors all differ from the initial ones."""
    torch.manual_seed(1)
    model = net()
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape).abs() + 1)
    return model


def assert_loaded(path, source):
    torch.manual_seed(2)
    model = net()
    load_weights(model, path)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


# ---- accepted files


@pytest.mark.parametrize("holder", [None, "model", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(tmp_path, source, holder, prefix, zipped):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    content = state if holder is None else {"epoch": 240, holder: state}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    assert_loaded(tmp_path / "net.pth", source)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors(tmp_path, source, prefix):
    save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "net.safetensors")
    assert_loaded(tmp_path / "net.safetensors", source)


def test_a_published_teacher_checkpoint(tmp_path):
    """RepDistiller saves its options, and a learning rate that is a NumPy scalar."""
    torch.manual_seed(1)
    inputs = InputSpec("array", (3, 32, 32))
    teacher = build_model("resnet8", inputs=inputs, num_classes=100)
    teacher(torch.randn(8, 3, 32, 32))  # moves the batch norms' statistics
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05 * np.float64(0.1) ** np.int64(2), momentum=0.9)
    opt = argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180, 210], trial=0)
    torch.save(
        {
            "opt": opt,
            "model": teacher.state_dict(),
            "optimizer": optimizer.state_dict(),
            "accuracy": torch.tensor([72.5]),
            "best_acc": np.float32(72.5),
            "epoch": np.int64(240),
        },
        tmp_path / "ckpt_epoch_240.pth",
    )
    student = build_model("resnet8", inputs=inputs, num_classes=100)
    load_weights(student, tmp_path / "ckpt_epoch_240.pth")
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(student.eval()(images), teacher.eval()(images))


def test_numpy_scalars_of_older_and_newer_files(tmp_path, source):
    path = tmp_path / "net.pth"
    torch.save({"model": source.state_dict(), "lr": np.float64(0.1)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert b"numpy._core.multiarray\n" in raw
    assert_loaded(path, source)
    path.write_bytes(raw.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert_loaded(path, source)


def test_files_without_the_batch_norms_counters(tmp_path, source):
    state = OrderedDict((name, value) for name, value in source.state_dict().items() if "tracked" not in name)
    torch.save(state, tmp_path / "old.pth")
    model = net()
    load_weights(model, tmp_path / "old.pth")
    assert torch.equal(model.head.weight, source.head.weight)
    assert model.norm.num_batches_tracked == 0


def test_a_model_with_a_child_called_module(tmp_path, source):
    wrapped = nn.ModuleDict({"module": source})
    torch.save(wrapped.state_dict(), tmp_path / "net.pth")
    other = nn.ModuleDict({"module": net()})
    load_weights(other, tmp_path / "net.pth")
    assert torch.equal(other["module"].head.weight, source.head.weight)


PREFIXES = ["module.", "_orig_mod.", "model.", "student.", "net.", "module._orig_mod.", "model.net._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_prefixes_of_wrappers(tmp_path, source, prefix, suffix):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"net.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert_loaded(path, source)


@pytest.mark.parametrize("attribute", ["model", "student", "net"])
def test_a_checkpoint_of_lightning(tmp_path, source, attribute):
    content = {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"{attribute}.{name}", value) for name, value in source.state_dict().items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "epoch=3.ckpt")
    assert_loaded(tmp_path / "epoch=3.ckpt", source)


def test_compiled_parts(tmp_path, source):
    state = {name.replace(".", "._orig_mod.", 1): value for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    assert_loaded(tmp_path / "net.pth", source)


# ---- refused files


def test_two_models_in_one_file(tmp_path, source):
    state = {f"{part}.{name}": value for part in ("student", "teacher") for name, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.ckpt")
    refuse(tmp_path / "net.ckpt", "'student'")


def test_a_shared_prefix_that_is_not_a_wrapper(tmp_path, source):
    torch.save({f"other.{name}": value for name, value in source.state_dict().items()}, tmp_path / "net.pth")
    refuse(tmp_path / "net.pth", r"other\.body\.weight")


def refuse(path, given):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=given) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_names_and_shapes(tmp_path, source, suffix):
    state = dict(source.state_dict())
    del state["body.weight"], state["body.bias"]
    state |= {f"extra.{letter}": torch.zeros(1) for letter in "abcd"}
    state["head.weight"] = torch.zeros(5, 4)
    path = tmp_path / f"net.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    refuse(
        path,
        r"net\.\w+ .*2.*body\.weight, body\.bias;.*4.*extra\.a, extra\.b, extra\.c, .*1.*head\.weight \(5, 4\).*\(2, 4\)",
    )


class Unknown:
    pass


class RunsACommand:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "named"), [(Unknown(), r"\S*test_weights\.Unknown"), (RunsACommand(), r"posix\.mkdir")]
)
def test_other_objects_in_a_pickle(tmp_path, monkeypatch, source, value, named, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"model": source.state_dict(), "extra": value}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    refuse(tmp_path / "net.pth", rf"net\.pth.*{named}")
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_the_list_of_allowed_types_is_restored(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "net.pth")
    load_weights(net(), tmp_path / "net.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04aaaa", b"\x80\x02}q\x00."])
def test_files_of_another_format(tmp_path, content, suffix):
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(content)
    refuse(path, rf"net\.{suffix}")


def test_a_file_cut_short(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "net.pth")
    raw = (tmp_path / "net.pth").read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "short.pth").write_bytes(raw[: int(share * len(raw))])
        refuse(tmp_path / "short.pth", r"short\.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "state_dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "epoch, weights.*state_dict"),
        ({"model": {"a": 1.0}}, "model.*state_dict"),
        ({1: torch.zeros(1)}, "1.*state_dict"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path, content, found):
    torch.save(content, tmp_path / "net.pth")
    refuse(tmp_path / "net.pth", rf"net\.pth.*{found}")


def test_files_that_do_not_exist(tmp_path):
    refuse(tmp_path / "none.pth", r"none\.pth")
    refuse(tmp_path, tmp_path.name)
