"""Impossible settings and wrong data: one error that names them, and nothing is written."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_training import (
    FEATURES,
    Recorder,
    Unsized,
    data,
    distiller_of,
    is_clean,
    loader,
    mlp,
    refused,
    validation_loader,
)
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller
from tgeokd.utils.errors import DivergenceError


def nan_weights():
    model = mlp(2)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    return model


def with_labels(labels, n=24):
    return DataLoader(list(zip(data(n)[0], labels, strict=True)), 8)


def bad_label(position, label, n=24):
    x, y = data(n)
    y[position] = label
    return DataLoader(TensorDataset(x, y), 8)


def empty():
    return DataLoader(TensorDataset(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64)), 8)


def without_class(gone):
    x, y = data(12, seed=7)
    return DataLoader(TensorDataset(x[y != gone], y[y != gone]), 4)


def nan_from(step):
    """A teacher whose logits on the samples of one batch are NaN."""

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(2)
            self.bad = data()[0][8 * step]

        def forward(self, x):
            hit = (x == self.bad).all(dim=-1, keepdim=True)
            return torch.where(hit, math.nan, self.inner(x))

    return Teacher()


BAD = {
    # method, options, training loader, validation loader, what the message contains
    "label too large": ("kd", {}, lambda: bad_label(0, 12), validation_loader, ["training loader", 12, 3]),
    "label negative": ("kd", {}, lambda: bad_label(3, -1), validation_loader, ["training loader", -1, 3]),
    "late label": ("kd", {}, lambda: bad_label(20, 3), validation_loader, ["training loader", 3]),
    "late label, tgeo": ("tgeo", {}, lambda: bad_label(20, 3), validation_loader, ["training loader", 3]),
    "validation label": ("kd", {}, loader, lambda: bad_label(9, 5, 12), [5, "3 classes"]),
    "validation label, tgeo": ("tgeo, holdout", {}, loader, lambda: bad_label(9, 5, 12), ["validation loader", 5]),
    "float labels": ("ce", {}, lambda: with_labels(torch.zeros(24)), validation_loader, ["int64", "float32"]),
    "2-D labels": ("ce", {}, lambda: with_labels(torch.zeros(24, 3)), validation_loader, ["(N,)", "(8, 3)"]),
    "labels in a list": ("ce", {}, lambda: [(data(2)[0], [0, 1])], validation_loader, ["(N,)", "list"]),
    "validation labels in a list": ("kd", {}, loader, lambda: [(data(3)[0], [0, 1, 2])], ["(N,)", "list"]),
    "validation labels in a list, tgeo": (
        "tgeo, holdout", {}, loader, lambda: [(data(3)[0], [0, 1, 2])], ["(N,)", "list"],
    ),
    "no pairs": ("ce", {}, lambda: [data(2)[0]], validation_loader, ["training loader", "(inputs, target)", "Tensor"]),
    "quadruples": ("ce", {}, lambda: [(1, 2, 3, 4)], validation_loader, ["training loader", "ids", "length 4"]),
    "mapping without labels": ("ce", {}, lambda: [{"x": data(2)[0]}], validation_loader, ["training loader", "labels", "x"]),
    "sample weights": (
        "ce", {}, lambda: [(*data(2), torch.rand(2))], validation_loader, ["training loader", "ids", "float32"],
    ),
    "validation triples of floats": (
        "kd", {}, loader, lambda: [(*data(3), torch.rand(3))], ["validation loader", "ids", "float32"],
    ),
    "class counts": ("kd", {"teacher": lambda: mlp(2, classes=5)}, loader, validation_loader, [3, 5]),
    "NaN teacher": ("kd", {"teacher": nan_weights}, loader, validation_loader, ["teacher", "step 0"]),
    "NaN teacher later": ("kd", {"teacher": lambda: nan_from(2)}, loader, validation_loader, ["teacher", "step 2"]),
    "NaN teacher, tgeo": ("tgeo", {"teacher": lambda: nan_from(2)}, loader, validation_loader, ["teacher", "before step 0"]),
    "teacher of logits as probabilities": (
        "kd", {"teacher_probs": lambda: True}, loader, validation_loader, ["teacher probabilities"],
    ),
    "3-D logits": (
        "ce",
        {"student": lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Unflatten(1, (2, 3)))},
        loader,
        validation_loader,
        ["(8, 2, 3)"],
    ),
    "empty loader": ("kd", {}, empty, validation_loader, ["training loader", "empty"]),
    "empty list": ("kd", {}, list, validation_loader, ["training loader", "empty"]),
    "empty iterable": ("kd", {}, lambda: Unsized([]), validation_loader, ["training loader", "empty"]),
    "empty validation": ("tgeo", {}, loader, empty, ["validation loader", "empty"]),
    "empty validation list": ("rw", {}, loader, list, ["validation loader", "empty"]),
    "empty validation, kd": ("kd", {}, loader, empty, ["validation loader", "empty"]),
    "validation that can be read only once": ("tgeo", {}, loader, lambda: iter([*validation_loader()]), []),
    "no validation": ("tgeo", {}, loader, lambda: None, ["tgeo", "outer='union'", "val_loader"]),
    "validation lacks a class": ("tgeo", {}, loader, lambda: without_class(1), ["class 1,"]),
    "no validation, mwnet": ("mwnet", {}, loader, lambda: None, ["mwnet", "outer='holdout'", "val_loader"]),
    "validation lacks a class, rw": ("rw", {}, loader, lambda: without_class(2), ["class 2,"]),
    "temperature 0": ("kd", {"temperature": lambda: 0.0}, loader, validation_loader, ["temperature", 0.0]),
    "temperature < 0, ce": ("ce", {"temperature": lambda: -2.0}, loader, validation_loader, ["temperature", -2.0]),
    "accumulate 0": ("kd", {"accumulate": lambda: 0}, loader, validation_loader, ["accumulate", 0]),
    "clip 0": ("kd", {"clip_norm": lambda: 0.0}, loader, validation_loader, ["clip_norm", 0.0]),
    "scheduler_every": ("kd", {"scheduler_every": lambda: "day"}, loader, validation_loader, ["scheduler_every", "day"]),
    "method": ("kdd", {}, loader, validation_loader, ["'kdd'", "'kd'"]),
    "accelerator": ("kd", {"accelerator": lambda: "abacus"}, loader, validation_loader, ["accelerator", "abacus"]),
    "precision": ("kd", {"precision": lambda: "3-true"}, loader, validation_loader, ["precision", "3-true"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_refused_with_its_values_and_nothing_is_written(case, tmp_path):
    method, options, train, validation, values = BAD[case]
    out = tmp_path / "run"
    with refused(*values):
        distiller = distiller_of(method, **{name: make() for name, make in options.items()})
        distiller.fit(train(), validation(), epochs=2, out=out)
    assert is_clean(out)


@pytest.mark.parametrize("method", ["kd", "anl", "ada", "wls", "rw", "tgeo"])
def test_a_method_that_needs_a_teacher_refuses_none(method):
    student = mlp(1)
    with refused(method, "teacher"):
        Distiller(student, None, method, SGD(student.parameters(), 0.1), accelerator="cpu", progress=False)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "patience": 0}, "patience"),
        ({"epochs": 1, "checkpoint_every": 0}, "checkpoint_every"),
        ({"epochs": 1, "resume": True}, "out="),
    ],
)
def test_impossible_arguments_of_fit(options, name, tmp_path):
    options.setdefault("out", None if "resume" in options else tmp_path / "run")
    with refused(name):
        distiller_of().fit(loader(), validation_loader(), **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["kd", "ce", "tgeo", "rw", "lskd", "gce", "rld", "eakd", "mwnet"])
def test_a_student_with_nan_weights_is_named_before_anything_is_written(method, tmp_path):
    with refused("student", "step 0", error=DivergenceError):
        distiller_of(method, student=nan_weights()).fit(loader(), validation_loader(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_diverging_student_is_stopped_in_the_step_where_it_diverges():
    by_hand, first_bad = mlp(1), None
    optimizer = SGD(by_hand.parameters(), 1e25)
    for step, (x, y) in enumerate([*loader()] * 4):
        logits = by_hand(x)
        if not logits.isfinite().all():
            first_bad = step
            break
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    assert first_bad is not None
    assert first_bad > 0
    with refused("student", f"step {first_bad}", error=DivergenceError):
        distiller_of("ce", lr=1e25).fit(loader(), epochs=4)


@pytest.mark.parametrize("method", ["kd", "rw", "tgeo"])
def test_a_fit_that_broke_off_can_be_followed_by_another(method):
    teacher = mlp(2)
    bad = [True]

    class Student(nn.Module):
        """Its second training batch gives NaN, once. (The extra passes of tgeo build no graph.)"""

        def __init__(self):
            super().__init__()
            self.inner, self.calls = mlp(1), 0

        def forward(self, x):
            trains = self.training and torch.is_grad_enabled()
            self.calls += trains
            if bad and trains and self.calls == 2:
                bad.clear()
                return self.inner(x) * math.nan
            return self.inner(x)

    distiller = distiller_of(method, student=Student(), teacher=teacher)
    with refused("student", "step 1", error=DivergenceError):
        distiller.fit(loader(), validation_loader(), epochs=1)
    assert len(distiller.fit(loader(), validation_loader(), epochs=1)) == 1


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    distiller_of().fit(loader(), epochs=1, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with refused(tmp_path, "metrics.jsonl"):
        distiller_of().fit(loader(), epochs=2, out=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with refused(tmp_path / "file" / "run"):
        distiller_of(callbacks=[recorder]).fit(loader(), epochs=1, out=tmp_path / "file" / "run")
    assert recorder.log == []


def test_only_a_bilevel_method_needs_an_optimizer_with_a_known_derivative():
    def make(method, **options):
        student = mlp(1)
        optimizer = torch.optim.RMSprop(student.parameters(), 1e-3)
        return Distiller(student, mlp(2), method, optimizer, accelerator="cpu", progress=False, **options)

    for method in ("ce", "kd", "anl", "ada", "wls", "rw"):
        make(method).fit(loader(), validation_loader(), epochs=1)
    with refused("RMSprop", "assume_sgd"):
        make("tgeo")
    make("tgeo", assume_sgd=True).fit(loader(), validation_loader(), epochs=1)


def test_a_class_without_training_samples_is_named_once():
    x, y = data(24)
    keep = y != 1
    with pytest.warns(UserWarning, match="class 1") as caught:
        distiller_of("tgeo, holdout").fit(DataLoader(TensorDataset(x[keep], y[keep]), 8), validation_loader(), epochs=2)
    assert len([w for w in caught if "class 1" in str(w.message)]) == 1
