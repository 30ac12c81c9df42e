"""Every public function refuses what is not of its type, shape or range, in one line, instead of computing something else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tgeokd import (
    DistillationStep,
    Distiller,
    MetaWeightNet,
    TGeoKD,
    VanillaKD,
    bilevel,
    build_method,
    geometry,
    losses,
)
from tgeokd.utils.errors import InputError

N, C = 4, 3
Z, T = torch.randn(N, C), torch.randn(N, C)
S, P = Z.softmax(-1), T.softmax(-1)
Y = torch.tensor([0, 1, 2, 0])
A = torch.rand(N)
MEANS = torch.full((C, C), 1 / C)

PAIRS = {
    "whole numbers": (Z.long(), T),
    "one sample": (Z[0], T[0]),
    "three dimensions": (Z[None], T[None]),
    "an array": (Z.numpy(), T),
    "other classes": (Z, T[:, :2]),
    "other samples": (Z, T[:1]),
}
TARGETS = {
    "ignored": torch.tensor([0, 1, -100, 0]),
    "too large": Y + 1,
    "floats": Y.float(),
    "int32": Y.int(),
    "one-hot": torch.eye(C)[Y],
    "other samples": Y[:3],
    "a list": Y.tolist(),
}
TEMPERATURES = {"zero": 0.0, "negative": -1.0, "nan": math.nan, "infinite": math.inf, "text": "4", "bool": True}
NOT_COUNTS = {"zero": 0, "a fraction": 1.5, "text": "1", "bool": True}
NOT_PROBS = {"logits": Z, "not of sum 1": S / 2, "negative": S - 1 + 1 / C, "whole numbers": Y[:, None]}


def refused(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_pairs_of_logits(pair):
    for loss in (losses.kd_loss, losses.soft_ce_loss, losses.kd_grad):
        refused(loss, *pair, 2.0)
    refused(losses.decoupled_kd, *pair, Y, 2.0)
    refused(losses.regression_loss, *pair)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_labels(target):
    refused(losses.gt_loss, Z, target)
    refused(losses.gt_grad, Z, target)
    refused(losses.decoupled_kd, Z, T, target, 2.0)
    refused(geometry.class_means, P, target, C)
    refused(geometry.trilateral, S, P, target, MEANS)


@pytest.mark.parametrize("tau", TEMPERATURES.values(), ids=TEMPERATURES)
def test_temperatures(tau):
    for loss in (losses.kd_loss, losses.soft_ce_loss, losses.kd_grad):
        refused(loss, Z, T, tau)
    refused(ratio_gradient, temperature=tau)
    refused(distiller, temperature=tau)


@pytest.mark.parametrize(
    "given",
    [
        (A, A, A[:, None]),  # would broadcast to (N, N)
        (A, A[:1], 0.5),
        (A, A, A[:3]),
        (A, A, 1.5),
        (A, A, math.nan),
        (A, A, -A - 0.1),
        (A, A, "half"),
    ],
)
def test_fusion(given):
    refused(losses.fuse, *given)


def test_one_logit_has_no_deviation():
    refused(losses.standardise, Z[:, :1])
    refused(losses.standardise, Z[0])
    refused(losses.standardise, Z.long())


@pytest.mark.parametrize("probs", NOT_PROBS.values(), ids=NOT_PROBS)
def test_probabilities(probs):
    refused(losses.logits_from_probs, probs)
    refused(geometry.class_means, probs, Y, C)
    refused(geometry.trilateral, probs, P, Y, MEANS)
    refused(geometry.trilateral, S, probs, Y, MEANS)


def test_shapes_of_the_geometry():
    refused(geometry.trilateral, S, P[:3], Y, MEANS)
    refused(geometry.trilateral, S, P, Y, MEANS[:2])
    refused(geometry.trilateral, S, P, Y, MEANS, encoding="tensor")
    for count in (0, -1, 1.5):
        refused(geometry.num_features, count)
        refused(geometry.ClassMeans, count)


def ratio_gradient(**changes):
    student = nn.Linear(C, C)
    given = {
        "inputs": Z, "target": Y, "teacher_logits": T, "alpha": A, "val_inputs": Z, "val_target": Y, "temperature": 2.0,
    }  # fmt: skip
    return bilevel.ratio_gradient(student, SGD(student.parameters(), 0.1), **given | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": A[:, None]},
        {"alpha": A + 1},
        {"target": Y + 1},
        {"target": Y.float()},
        {"val_target": Y - 1},
        {"teacher_logits": T[:, :2]},
        {"teacher_logits": T.long()},
        {"val_inputs": Z[:0], "val_target": Y[:0]},
        {"inputs": Z[:0], "target": Y[:0], "teacher_logits": T[:0], "alpha": A[:0]},
        {"method": "backward"},
        {"clip_norm": 0.0},
        {"accumulate": 9},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_ratio_gradient(changes):
    refused(ratio_gradient, **changes)


def distiller(**options):
    student = options.pop("student", None) or nn.Linear(C, C)
    optimizer = options.pop("optimizer", None) or SGD(nn.ParameterList([*student.parameters()]), 0.1)
    return Distiller(
        student, options.pop("teacher", nn.Linear(C, C)), options.pop("method", "kd"), optimizer,
        accelerator="cpu", progress=False, allow_bad_teacher=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        *({"accumulate": value} for value in NOT_COUNTS.values()),
        {"clip_norm": -1.0},
        {"clip_norm": "1"},
        {"method": "tgoe"},
        {"method": 3},
        {"teacher": 3},
        {"scheduler": 3},
        {"metrics": 3},
        {"callbacks": [3]},
    ],
    ids=str,
)
def test_the_arguments_of_a_distiller(options):
    refused(distiller, **options)


def test_a_student_and_an_optimizer_are_needed():
    refused(Distiller, None, nn.Linear(C, C), "kd", SGD(nn.Linear(C, C).parameters(), 0.1))
    refused(Distiller, nn.Linear(C, C), nn.Linear(C, C), "kd", None)
    refused(DistillationStep, nn.Linear(C, C), SGD(nn.Linear(C, C).parameters(), 0.1), 3)


@pytest.mark.parametrize("value", NOT_COUNTS.values(), ids=NOT_COUNTS)
@pytest.mark.parametrize("name", ["epochs", "patience", "checkpoint_every"])
def test_counts_of_a_fit(name, value):
    refused(distiller().fit, [(Z, Y)], [(Z, Y)], **{"epochs": 1} | {name: value})


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_a_seed(seed):
    refused(distiller().fit, [(Z, Y)], epochs=1, seed=seed)


@pytest.mark.parametrize(
    "loader",
    [None, 3, [], [(Z[:0], Y[:0])], [(Z, Y), (Z[:0], Y[:0])], [(Z, Y[:3])], [(Z[:3], Y)], [(Z, TARGETS["ignored"])]],
    ids=[
        "none",
        "a number",
        "empty",
        "empty batch",
        "empty batch later",
        "fewer labels",
        "fewer inputs",
        "ignored labels",
    ],
)
def test_loaders(loader):
    refused(distiller().fit, loader, epochs=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VanillaKD(alpha=2.0),
        lambda: VanillaKD(alpha="half"),
        lambda: TGeoKD(lr=-1.0),
        lambda: TGeoKD(lr=math.nan),
        lambda: TGeoKD(penalty=math.inf),
        lambda: TGeoKD(hidden=(0,)),
        lambda: TGeoKD(hidden=3),
        lambda: TGeoKD(update_interval=1.5),
        lambda: TGeoKD(update_interval=0),
        lambda: TGeoKD(ema_decay=1.5),
        lambda: TGeoKD(hypergradient=3),
        lambda: TGeoKD(outer_batch_size=1.5),
        lambda: MetaWeightNet(hidden=1.5),
        lambda: build_method("kd", alhpa=0.5),
    ],
)
def test_options_of_methods(build):
    refused(build)
