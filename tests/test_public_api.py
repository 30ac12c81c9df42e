"""The names and signatures that the package promises to its users."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib import metadata, resources

import pytest
import torch

import tgeokd

MODULES = ["tgeokd", *(found.name for found in pkgutil.walk_packages(tgeokd.__path__, "tgeokd."))]


PROMISED = {
    "AdaptiveKD",
    "AnnealingKD",
    "DistillationStep",
    "Distiller",
    "LossInputs",
    "ReweightingKD",
    "TGeoKD",
    "VanillaKD",
    "WeightedSoftLabelKD",
    "bilevel",
    "geometry",
    "losses",
}


def test_the_promised_names_are_offered_by_a_star_import():
    names: dict[str, object] = {}
    exec("from tgeokd import *", names)
    assert set(tgeokd.__all__) <= set(names)
    assert set(tgeokd.__all__) >= PROMISED
    assert set(dir(tgeokd)) >= PROMISED


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Distillr"):
        _ = tgeokd.Distillr
    assert not hasattr(tgeokd, "Distillr")


@pytest.mark.process
def test_the_version_needs_no_torch():
    code = "import sys, tgeokd; print(tgeokd.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [metadata.version("tgeokd"), "False"]


def parameters(function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "positional", "keywords"),
    [
        (tgeokd.losses.kd_loss, ["student_logits", "teacher_logits", "temperature"], []),
        (tgeokd.losses.gt_loss, ["student_logits", "target"], []),
        (tgeokd.geometry.class_means, ["teacher_probs", "target", "num_classes"], []),
        (
            tgeokd.geometry.trilateral,
            ["student_probs", "teacher_probs", "target", "class_means"],
            ["encoding", "student_teacher_edge", "inter_sample"],
        ),
        (
            tgeokd.bilevel.ratio_gradient,
            ["student", "optimizer"],
            ["inputs", "target", "teacher_logits", "alpha", "val_inputs", "val_target", "temperature", "method"],
        ),
        (tgeokd.DistillationStep, ["student", "optimizer", "method"], ["temperature", "validation"]),
        (tgeokd.DistillationStep.prepare, ["self", "train_loader", "teacher"], []),
        (tgeokd.DistillationStep.loss, ["self", "batch", "teacher"], []),
        (tgeokd.DistillationStep.loss_from_logits, ["self", "student_logits", "target", "teacher_logits", "ids"], []),
        (tgeokd.DistillationStep.before_update, ["self"], []),
        (tgeokd.DistillationStep.after_update, ["self"], []),
        (tgeokd.Distiller, ["student", "teacher", "method", "optimizer"], ["temperature"]),
        (tgeokd.Distiller.fit, ["self", "train_loader", "val_loader"], ["epochs"]),
        (tgeokd.Distiller.evaluate, ["self", "loader"], []),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_the_promised_signatures(function, positional, keywords):
    found = parameters(function)
    kinds = {name: parameter.kind for name, parameter in found.items()}
    assert [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD] == positional
    assert [name for name in keywords if kinds.get(name) is not inspect.Parameter.KEYWORD_ONLY] == []


@pytest.mark.parametrize(
    ("function", "name", "default"),
    [
        (tgeokd.Distiller, "temperature", 4.0),
        (tgeokd.geometry.trilateral, "student_teacher_edge", True),
        (tgeokd.geometry.trilateral, "inter_sample", True),
        (tgeokd.bilevel.ratio_gradient, "method", "forward"),
    ],
)
def test_the_promised_defaults(function, name, default):
    assert parameters(function)[name].default == default


def test_the_promised_functions_return_the_promised_shapes():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    target = torch.tensor([0, 1, 2, 1, 0])
    assert tgeokd.losses.kd_loss(student, teacher, 4.0).shape == (5,)
    assert tgeokd.losses.gt_loss(student, target).shape == (5,)
    means = tgeokd.geometry.class_means(teacher.softmax(1), target, 3)
    assert means.shape == (3, 3)
    probs = student.softmax(1), teacher.softmax(1)
    assert tgeokd.geometry.trilateral(*probs, target, means, encoding="vector").shape == (5, 27)
    scalar = tgeokd.geometry.trilateral(*probs, target, means, encoding="scalar")
    assert scalar.shape[0] == 5
    net = torch.nn.Linear(4, 3)
    gradient = tgeokd.bilevel.ratio_gradient(
        net,
        torch.optim.SGD(net.parameters(), 0.1),
        inputs=torch.randn(5, 4),
        target=target,
        teacher_logits=teacher,
        alpha=torch.full((5,), 0.5),
        val_inputs=torch.randn(6, 4),
        val_target=torch.tensor([0, 1, 2, 0, 1, 2]),
        temperature=4.0,
    )
    assert gradient.shape == (5,)


def test_the_command_the_types_and_the_templates_are_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="tgeokd")
    assert script.value == "tgeokd.cli.main:main"
    assert callable(script.load())
    assert resources.files("tgeokd").joinpath("py.typed").is_file()
    assert resources.files("tgeokd.report").joinpath("templates", "page.html.jinja").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_every_name_a_module_offers_exists(name):
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", [])
    assert [wanted for wanted in offered if not hasattr(module, wanted)] == []
    assert len(set(offered)) == len(offered)
