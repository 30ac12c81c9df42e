"""Checkpoints: what they hold, damaged ones, and runs that are resumed with other settings."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resumed_runs import (
    STEPS,
    At,
    assert_same_end,
    contents,
    distiller_of,
    fit,
    metrics,
    train_loader,
    validation_loader,
)
from small_training import CountedTeacher, data, refused
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import TGeoKD, VanillaKD
from tgeokd.training.callbacks import Callback
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.training.fingerprint import differences
from tgeokd.training.state import SCHEMA, RandomStates
from tgeokd.utils.errors import InputError


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def flip_a_byte(path, position=-200):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# ---- on disk


def test_the_last_two_checkpoints_are_kept_with_their_checksums(tmp_path):
    fit(distiller_of(), epochs=4, out=tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{3 * STEPS:09d}.pt", f"step-{4 * STEPS:09d}.pt"]
    for path in checkpoints(tmp_path):
        digest, name = path.with_name(path.name + ".sha256").read_text().split()
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert name == path.name
    best = tmp_path / "checkpoints" / "best.pt"
    scores = [record["val_accuracy"] for record in metrics(tmp_path)]
    assert Checkpointer(tmp_path).load("best").epoch == 1 + scores.index(max(scores))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * len([*checkpoints(tmp_path), best])


def test_a_checkpoint_is_read_without_running_code_and_names_its_version(tmp_path):
    fit(distiller_of("tgeo"), epochs=1, out=tmp_path)
    content = torch.load(checkpoints(tmp_path)[-1], weights_only=True)
    assert content["schema"] == SCHEMA
    assert (content["epoch"], content["batch"], content["step"]["index"]) == (1, 0, 4)
    assert content["fingerprints"]["configuration"]["method"] == "tgeo"
    json.dumps(content["history"])


@pytest.mark.parametrize("position", [0, 5000, -200, -1])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, position, caplog):
    fit(distiller_of("tgeo"), epochs=3, out=tmp_path)
    before, newest = checkpoints(tmp_path)
    flip_a_byte(newest, position)
    resumed, whole = distiller_of("tgeo"), distiller_of("tgeo")
    with caplog.at_level(logging.WARNING, "tgeokd"):
        fit(resumed, epochs=4, out=tmp_path, resume=True)
    assert [newest.name in message for message in caplog.messages] == [True]
    assert resumed.resumed_at == 2
    fit(whole, epochs=4)
    assert_same_end(resumed, whole)
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1, 2, 3]
    assert before not in checkpoints(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no checksum", "empty checksum", "empty"])
def test_an_incomplete_checkpoint_is_skipped_with_a_warning(tmp_path, damage, caplog):
    fit(distiller_of(), epochs=3, out=tmp_path)
    newest = checkpoints(tmp_path)[-1]
    checksum = newest.with_name(newest.name + ".sha256")
    if damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-100])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "no checksum":
        checksum.unlink()
    else:
        checksum.write_text("")
    with caplog.at_level(logging.WARNING, "tgeokd"):
        assert Checkpointer(tmp_path).load().epoch == 2
    assert newest.name in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_alone(tmp_path):
    fit(distiller_of(), epochs=3, out=tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        flip_a_byte(path)
    before = contents(tmp_path)
    with refused("damaged", "best.pt"):
        fit(distiller_of(), epochs=4, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("schema", [None, 1, SCHEMA + 1])
def test_another_version_is_refused_by_its_number(tmp_path, schema):
    fit(distiller_of(), epochs=1, out=tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        rewrite(path, lambda content: content.update(schema=schema))
    with refused("best.pt", schema, SCHEMA):
        fit(distiller_of(), epochs=2, out=tmp_path, resume=True)


def test_a_checkpoint_of_an_earlier_version_is_refused_and_left_alone(tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt" / "state.pt").write_bytes(b"anything")
    with refused(tmp_path / "last.ckpt"):
        fit(distiller_of(), epochs=2, out=tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


# ---- resumed with other settings


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(9)
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x)


CHANGED = {
    "temperature": ({"temperature": 2.0}, {}, ["temperature", 4.0, 2.0]),
    "optimizer": ({"optimizer": "adamw"}, {}, ["optimizer", "SGD", "AdamW"]),
    "method": ({"method": "tgeo"}, {}, ["method", "'kd'", "'tgeo'"]),
    "method without class means": ({"method": "wls"}, {}, ["method", "'kd'", "'wls'"]),
    "scheduler": ({"scheduler": lambda optimizer: StepLR(optimizer, 1)}, {}, ["scheduler", "none", "StepLR"]),
    "accumulate": ({"accumulate": 2}, {}, ["accumulate", 1, 2]),
    "clip_norm": ({"clip_norm": 2.0}, {}, ["clip_norm", 1.0, 2.0]),
    "no clip_norm": ({"clip_norm": None}, {}, ["clip_norm", 1.0, "none"]),
    "options": ({"method": VanillaKD(alpha=0.25)}, {}, ["options", 0.9, 0.25]),
    "precision": ({"precision": "bf16-mixed"}, {}, ["precision", "32-true", "bf16-mixed"]),
    "teacher": ({"teacher": Unknown()}, {}, ["teacher", "weights"]),
    "training samples": ({}, {"samples": 21}, ["training samples", 20, 21]),
    "validation samples": ({}, {"held": 15}, ["validation samples", 12, 15]),
    "batch size": ({}, {"batch_size": 7}, ["batch_size", 8, 7]),
}


def run(folder, options, loaders, **fit_options):
    options = {"method": "kd", "clip_norm": 1.0, **options}
    train = DataLoader(TensorDataset(*data(loaders.get("samples", 20))), loaders.get("batch_size", 8), shuffle=True)
    held = DataLoader(TensorDataset(*data(loaders.get("held", 12), 7)), 6)
    distiller_of(options.pop("method"), **options).fit(train, held, out=folder, **fit_options)


@pytest.mark.parametrize("case", CHANGED)
def test_a_run_is_not_resumed_with_other_settings(tmp_path, case):
    options, loaders, values = CHANGED[case]
    run(tmp_path, {}, {}, epochs=2)
    before = contents(tmp_path)
    with refused(*values):
        run(tmp_path, options, loaders, epochs=3, resume=True)
    assert contents(tmp_path) == before
    run(tmp_path, {}, {}, epochs=3, resume=True)  # unchanged, it can be


def test_a_run_is_not_resumed_with_another_seed(tmp_path):
    run(tmp_path, {}, {}, epochs=1, seed=1)
    with refused("seed", 1, 2):
        run(tmp_path, {}, {}, epochs=2, seed=2, resume=True)


def test_a_run_with_a_scheduler_is_not_resumed_without(tmp_path):
    run(tmp_path, {"scheduler": lambda optimizer: StepLR(optimizer, 1)}, {}, epochs=1)
    with refused("scheduler", "StepLR", "none"):
        run(tmp_path, {}, {}, epochs=2, resume=True)


def test_all_differences_are_named_at_once(tmp_path):
    run(tmp_path, {}, {}, epochs=1)
    with refused("temperature", "accumulate", "training samples"):
        run(tmp_path, {"temperature": 2.0, "accumulate": 2}, {"samples": 30}, epochs=2, resume=True)


@pytest.mark.parametrize(("first", "second"), [("tgeo", "kd"), ("tgeo", "rw"), ("ce", "tgeo"), ("ada", "tgeo")])
def test_the_name_of_another_method_is_given_whatever_it_needs(tmp_path, first, second):
    fit(distiller_of(first), epochs=1, out=tmp_path)
    before = contents(tmp_path)
    with refused(repr(first), repr(second)):
        fit(distiller_of(second), epochs=2, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_student_of_another_shape_is_refused(tmp_path):
    fit(distiller_of(), epochs=1, out=tmp_path)
    before = contents(tmp_path)
    other = distiller_of()
    other.student[0] = nn.Linear(4, 9)
    with refused("parameters", "student"):
        fit(other, epochs=2, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_other_options_of_the_method_that_do_not_fit_its_state_are_refused(tmp_path):
    fit(distiller_of(TGeoKD(hidden=(8,))), epochs=1, out=tmp_path)
    with pytest.raises(InputError):
        fit(distiller_of(TGeoKD(hidden=(9,))), epochs=2, out=tmp_path, resume=True)


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.none() | st.integers(0, 2) | st.sampled_from(["x", "y"])
PRINTS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES))


@given(PRINTS, PRINTS)
def test_differences_are_the_known_values_that_are_not_equal(saved, now):
    expected = {
        (group, key)
        for group in saved.keys() & now.keys()
        for key in saved[group].keys() & now[group].keys()
        if None not in (saved[group][key], now[group][key]) and saved[group][key] != now[group][key]
    }
    found = differences(saved, now)
    assert found.keys() == expected


# ---- what a resumed run does not do again


@pytest.mark.parametrize("outer", ["holdout", "union", "train"])
def test_a_resumed_run_does_not_query_the_teacher_for_class_means(tmp_path, outer):
    def teacher():
        torch.manual_seed(3)
        return CountedTeacher(4, 3)

    def samples_of(epochs):
        return epochs * (32 if outer == "union" else 20)

    first, second = teacher(), teacher()
    fit(distiller_of(TGeoKD(outer=outer), teacher=first), epochs=2, out=tmp_path)
    # the survey, two epochs, the check of the first batch, and the comparison with the validation labels
    assert first.calls == samples_of(3) + 8 + 12
    distiller = distiller_of(TGeoKD(outer=outer), teacher=second)
    fit(distiller, epochs=3, out=tmp_path, resume=True)
    assert second.calls == samples_of(1)
    whole = distiller_of(TGeoKD(outer=outer), teacher=teacher())
    fit(whole, epochs=3)
    assert torch.equal(distiller.method.class_means, whole.method.class_means)


def test_class_means_are_those_of_the_checkpoint_even_where_loaders_yield_other_samples(tmp_path):
    """They are part of the state: a stream may not give the same samples again."""
    fit(distiller_of("tgeo"), epochs=1, out=tmp_path)
    path = checkpoints(tmp_path)[-1]
    stored = torch.load(path, weights_only=True)["survey"]["class_means"]
    resumed = distiller_of("tgeo")
    resumed.fit(train_loader(), validation_loader(), epochs=2, out=tmp_path, resume=True)
    assert torch.equal(resumed.method.class_means, stored)


# ---- random states


def draw():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


@given(seed=st.integers(0, 2**31), before=st.integers(0, 700))
def test_random_states_go_round_through_plain_values(seed, before, tmp_path_factory):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(before):
        random.gauss(0, 1), np.random.randn(), torch.randn(())
    states = RandomStates.capture(torch.device("cpu"))
    expected = [draw() for _ in range(3)]
    path = tmp_path_factory.getbasetemp() / "states.pt"
    torch.save(vars(states), path)
    RandomStates(**torch.load(path, weights_only=True)).restore(torch.device("cpu"))
    assert [draw() for _ in range(3)] == expected


def test_checkpoints_of_a_run_that_was_resumed_replace_its_later_ones(tmp_path):
    """After a damaged checkpoint, the run goes over its steps again and writes the same files."""
    fit(distiller_of("kd", At()), epochs=3, out=tmp_path)
    newest = checkpoints(tmp_path)[-1]
    good = torch.load(newest, weights_only=True)
    flip_a_byte(newest)
    fit(distiller_of("kd", At()), epochs=3, out=tmp_path, resume=True)
    again = torch.load(newest, weights_only=True)
    assert torch.equal(again["student"]["0.weight"], good["student"]["0.weight"])


# ---- what cannot be restored


class Holds(Callback):
    """Has a state with one value that may be anything."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"good": [1, "a"], "inner": {"value": self.value}}


class Custom:
    pass


UNRESTORABLE = {
    "object": (Custom, "Custom"),
    "array": (lambda: np.zeros(3), "ndarray"),
    "function": (lambda: lambda: None, "function"),
    "lock": (threading.Lock, "lock"),
}


@pytest.mark.parametrize("name", UNRESTORABLE)
def test_what_cannot_be_restored_fails_at_the_first_write_and_names_the_key(tmp_path, name):
    build, kind = UNRESTORABLE[name]
    with refused("callbacks[0][1].inner.value", kind):
        fit(distiller_of("kd", Holds(build())), epochs=3, out=tmp_path)
    assert not (tmp_path / "checkpoints").exists()  # nothing that looks as if it could be resumed


def test_only_the_first_checkpoint_of_a_run_is_read_back(tmp_path, monkeypatch):
    read, loaded = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(args) or loaded(*args, **options))
    fit(distiller_of("kd", Holds(1.5)), epochs=3, out=tmp_path)
    assert len(read) == 1


# ---- older checkpoints


def rewritten(folder, change):
    rewrite(checkpoints(folder)[-1], change)


def rewrite(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def test_a_checkpoint_without_the_states_of_numpy_and_python_is_resumed_with_one_line(tmp_path, caplog):
    def forget(content):
        for place in ("random", "random_at_epoch"):
            del content[place]["numpy"], content[place]["python"]

    fit(distiller_of(), epochs=1, out=tmp_path)
    rewritten(tmp_path, forget)
    resumed = distiller_of()
    fit(resumed, epochs=2, out=tmp_path, resume=True)
    assert resumed.resumed_at == 1
    assert ["NumPy" in message and "Python" in message for message in caplog.messages] == [True]


def test_a_checkpoint_without_later_fingerprints_and_names_is_resumed(tmp_path):
    def forget(content):
        del content["parameters"], content["trainable"]
        for group in ("optimizer", "scheduler", "loader"):
            del content["fingerprints"][group]
        del content["fingerprints"]["configuration"]["epochs"]

    def make():
        return distiller_of("kd", scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5))

    fit(make(), epochs=1, out=tmp_path)
    rewritten(tmp_path, forget)
    resumed, whole = make(), make()
    fit(resumed, epochs=2, out=tmp_path, resume=True)
    fit(whole, epochs=2)
    assert_same_end(resumed, whole)
