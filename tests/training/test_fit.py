"""Training against loops written out by hand: loaders, inputs, randomness, precision and records."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_training import (
    Unsized,
    assert_close,
    assert_same,
    data,
    differ,
    distiller_of,
    loader,
    mlp,
    refused,
    seen_by,
    validation_loader,
    weights,
    without_seconds,
)
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from tgeokd import AdaptiveKD, AnnealingKD, CrossEntropy, ReweightingKD, TGeoKD, VanillaKD, WeightedSoftLabelKD
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import History


def plain_loop(student, teacher, batches, *, alpha, tau, epochs, seed, lr, momentum=0.0, clip=None):
    """Distillation as anyone would write it."""
    optimizer = SGD(student.parameters(), lr, momentum=momentum)
    torch.manual_seed(seed)
    student.train()
    losses = []
    for _ in range(epochs):
        for x, y in batches:
            logits = student(x)
            loss = (1 - alpha) * F.cross_entropy(logits, y, reduction="none")
            if alpha:
                with torch.no_grad():
                    soft = teacher(x)
                log_s, log_t = F.log_softmax(logits / tau, dim=-1), F.log_softmax(soft / tau, dim=-1)
                kd = tau**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=-1)
                loss = alpha * kd + loss
            optimizer.zero_grad()
            (loss.sum() / len(y)).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            losses.append((loss.detach(), len(y)))
    return losses


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_ce_and_kd_are_the_plain_loop_bit_for_bit(alpha, clip):
    def batches():
        return loader(28, 8, shuffle=True)  # the last batch is short

    by_hand = mlp(1, norm=True, dropout=True)
    settings = {"alpha": alpha, "tau": 3.0, "epochs": 3, "seed": 5, "lr": 0.1, "momentum": 0.9, "clip": clip}
    losses = plain_loop(by_hand, mlp(2).eval(), batches(), **settings)

    student = mlp(1, norm=True, dropout=True)
    distiller = distiller_of(
        VanillaKD(alpha=alpha) if alpha else "ce", student=student, momentum=0.9, temperature=3.0, clip_norm=clip
    )
    history = distiller.fit(batches(), epochs=3, seed=5)
    assert_same(weights(student), weights(by_hand))
    of_epoch = [losses[start : start + 4] for start in (0, 4, 8)]
    expected = [sum(float(loss.sum()) for loss, _ in epoch) / 28 for epoch in of_epoch]
    assert history["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_clipping_changes_something():
    runs = []
    for clip in (None, 0.2):
        distiller = distiller_of("kd", clip_norm=clip)
        distiller.fit(loader(), epochs=1)
        runs.append(weights(distiller.student))
    assert differ(*runs)


def test_kd_with_ratio_zero_is_ce():
    runs = []
    for method in (VanillaKD(alpha=0.0), CrossEntropy()):
        distiller = distiller_of(method, momentum=0.9)
        distiller.fit(loader(shuffle=True), epochs=2)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=1e-6, atol=1e-7)


# ---- loaders


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(*data()))


def test_any_iterable_is_a_loader():
    runs = []
    for train in (loader(), [*loader()], Unsized(loader())):
        distiller = distiller_of("kd")
        distiller.fit(train, validation_loader(), epochs=2)
        runs.append(weights(distiller.student))
        assert distiller.step == 6
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_a_loader_over_an_iterable_data_set():
    runs = []
    for train in (loader(), DataLoader(Stream(), 8)):
        distiller = distiller_of("kd")
        distiller.fit(train, validation_loader(), epochs=2)
        runs.append(weights(distiller.student))
    assert_same(*runs)


def test_a_sampler_of_the_user_is_used():
    x, y = data()
    train = DataLoader(TensorDataset(x, y), 8, sampler=RandomSampler(range(24), replacement=True, num_samples=16))
    history = distiller_of("kd").fit(train, epochs=1)
    assert seen_by(history[0]) == 16


# ---- students


@pytest.mark.parametrize("method", ["kd", "tgeo", "rw", "dkd"])
def test_frozen_layers_stay_as_they_are(method):
    """Neither their weights nor, in eval mode, their running statistics move, in whatever pass."""
    student = mlp(1, norm=True)
    student[0].requires_grad_(False)
    student[1].requires_grad_(False).eval()
    before = weights(student)
    distiller_of(method, student=student, momentum=0.9).fit(loader(), validation_loader(), epochs=2)
    after = weights(student)
    assert not student[1].training
    assert student.training
    for name in before:
        assert torch.equal(after[name], before[name]) == (not name.startswith("3."))


def test_running_statistics_move_once_per_batch():
    student = mlp(1, norm=True)
    distiller = distiller_of(TGeoKD(outer="holdout", update_interval=1, hypergradient="forward"), student=student)
    distiller.fit(loader(), validation_loader(), epochs=2)
    assert int(student[1].num_batches_tracked) == 2 * 3


# ---- randomness


@pytest.mark.parametrize(
    "method", ["ce", "kd", "anl", "ada", "wls", "rw", "tgeo", "dkd", "lskd", "gce", "rld", "eakd", "mwnet"]
)
def test_one_seed_gives_one_result_and_another_seed_another(method):
    runs, histories = [], []
    for noise, seed in ((0, 3), (1, 3), (0, 4)):
        student, teacher = mlp(1, dropout=True), mlp(2)
        torch.manual_seed(noise)  # what came before must not matter
        np.random.seed(noise)
        distiller = distiller_of(method, student=student, teacher=teacher, momentum=0.9)
        histories.append(distiller.fit(loader(shuffle=True), validation_loader(), epochs=2, seed=seed))
        runs.append(weights(student))
    assert_same(runs[0], runs[1])
    assert without_seconds(histories[0]) == without_seconds(histories[1])
    assert differ(runs[0], runs[2])


@pytest.mark.parametrize("method", ["kd", "wls"])
def test_evaluating_a_validation_set_does_not_change_training(method):
    runs = []
    for validation in (None, validation_loader(), loader(12, 6, seed=7, shuffle=True)):
        student = mlp(1, dropout=True)
        distiller_of(method, student=student).fit(loader(shuffle=True), validation, epochs=3)
        runs.append(weights(student))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_an_evaluation_of_arrays_in_between_does_not_change_training():
    class Evaluate(Callback):
        def on_epoch_end(self, distiller, record):
            distiller.evaluate([data(12, seed=7)])
            distiller.fusion_ratios([data(12, seed=7)])

    runs = []
    for callbacks in ([], [Evaluate()]):
        student = mlp(1, dropout=True, norm=True)
        distiller_of("kd", student=student, callbacks=callbacks).fit(loader(shuffle=True), epochs=3)
        runs.append(weights(student))
    assert_same(*runs)


def test_the_survey_before_training_does_not_change_the_batches():
    """Class means need a pass over the training data first; `ada` by sample does without and must meet the same batches."""
    orders = []
    for method in (AdaptiveKD(level="sample"), AdaptiveKD(level="class")):
        generator = torch.Generator().manual_seed(9)
        for train in (loader(shuffle=True), loader(shuffle=True, generator=generator)):
            seen = []
            student = mlp(1)
            student.register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.append(inputs[0]) if module.training else None
            )
            distiller_of(method, student=student).fit(train, epochs=2)
            orders.append(torch.cat(seen))
    assert torch.equal(orders[0], orders[2])
    assert torch.equal(orders[1], orders[3])


# ---- precision


@pytest.mark.parametrize("method", ["ce", "kd", "ada", "wls", "anl"])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-6), ("bf16-mixed", 2e-2)])
def test_other_precisions_run_and_agree(method, precision, tolerance):
    runs = []
    for setting in ("32-true", precision):
        distiller = distiller_of(method, precision=setting)
        history = distiller.fit(loader(), validation_loader(), epochs=2)
        runs.append({name: value.double() for name, value in weights(distiller.student).items()})
        assert all(math.isfinite(loss) for loss in history["train_loss"])
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert all(parameter.dtype == dtype for parameter in distiller.student.parameters())
    assert_close(*runs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("hypergradient", ["auto", "exact", "forward", "finite_difference", "last_layer"])
@pytest.mark.parametrize(
    "precision",
    [
        "64-true",
        "bf16-mixed",
    ],
)
def test_tgeo_runs_in_other_precisions(hypergradient, precision):
    method = TGeoKD(hypergradient=hypergradient)
    history = distiller_of(method, precision=precision).fit(loader(), validation_loader(), epochs=2)
    assert all(math.isfinite(loss) for loss in history["train_loss"])


def test_rw_runs_in_mixed_precision():
    distiller_of(ReweightingKD(), precision="bf16-mixed").fit(loader(), validation_loader(), epochs=1)


@pytest.mark.parametrize("precision", ["16-mixed", "16", 16])
def test_scaled_half_precision_is_refused(precision):
    with refused("16-mixed"):
        distiller_of(precision=precision)


# ---- the record


def test_history_and_metrics_file_hold_the_same(tmp_path):
    distiller = distiller_of(VanillaKD(alpha=0.25))
    history = distiller.fit(loader(), validation_loader(), epochs=3, out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(history)
    assert isinstance(history, History)
    assert distiller.history is history
    assert list(history[0]) == [
        "epoch",
        "train_loss",
        "lr",
        "val_loss",
        "val_accuracy",
        "alpha_mean",
        "alpha_saturated",
        "alpha",
        "seconds",
    ]
    assert history["epoch"] == [0, 1, 2]
    assert history["alpha_mean"] == [0.25] * 3
    assert history["no such key"] == [None] * 3
    assert history[-1]["val_accuracy"] == distiller.evaluate(validation_loader())["accuracy"]
    assert history[-1]["val_loss"] == distiller.evaluate(validation_loader())["nll"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "student.safetensors",
        "student.safetensors.sha256",
    ]


def test_without_validation_data_and_ratios_the_fields_are_absent_or_none():
    record = distiller_of("ce").fit(loader(), epochs=1)[0]
    assert "val_loss" not in record
    assert record["alpha_mean"] is None
    assert record["alpha"] is None


@pytest.mark.parametrize("method", [VanillaKD, AnnealingKD, AdaptiveKD, WeightedSoftLabelKD, ReweightingKD])
def test_the_alpha_histogram_counts_every_training_sample_once(method):
    history = distiller_of(method(), accumulate=2).fit(loader(28), validation_loader(), epochs=2)
    for record in history:
        assert seen_by(record) == 28
        assert sum(group["count"] for group in record["alpha"].values()) == 28
