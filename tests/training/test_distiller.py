"""The training loop, against loops written out here and against scikit-learn."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from tgeokd import (
    AdaptiveKD,
    AnnealingKD,
    CrossEntropy,
    Distiller,
    ReweightingKD,
    TGeoKD,
    VanillaKD,
    WeightedSoftLabelKD,
)
from tgeokd.core.metrics import Metrics
from tgeokd.data.arrays import ArrayDataset
from tgeokd.teachers import StoredPredictions
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import History
from tgeokd.utils.errors import InputError

FEATURES, CLASSES = 4, 3


def data(n=24, seed=0, classes=CLASSES):
    """A linearly separable task with some noise; every class is there."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, FEATURES, generator=generator)
    x[torch.arange(n), y] += 1.0
    return x, y


def loader(n=24, batch_size=8, *, seed=0, classes=CLASSES, **options):
    return DataLoader(TensorDataset(*data(n, seed, classes)), batch_size, **options)


def held_out(n=12):
    return loader(n, 6, seed=7)


def mlp(seed, *, classes=CLASSES, norm=False, dropout=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(FEATURES, 8)]
    if norm:
        layers.append(nn.BatchNorm1d(8))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.Linear(8, classes))


def distiller_of(method="kd", *, student=None, teacher=None, lr=0.1, momentum=0.0, weight_decay=0.0, **options):
    if method == "tgeo, holdout":  # of loaders that outer="union" cannot mix
        method = TGeoKD(outer="holdout")
    student = mlp(1) if student is None else student
    teacher = mlp(2) if teacher is None else teacher
    optimizer = SGD(student.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    scheduler = options.pop("scheduler", None)
    if scheduler is not None:
        scheduler = scheduler(optimizer)
    return Distiller(
        student,
        teacher,
        method,
        optimizer,
        **{"accelerator": "cpu", "progress": False, "scheduler": scheduler, **options},
    )


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def differ(a, b):
    return any(not torch.equal(a[name], b[name]) for name in a)


class Recorder(Callback):
    """What happened, in order, with the numbers the tests ask for."""

    def __init__(self, name="", log=None):
        self.name, self.log = name, [] if log is None else log
        self.rates, self.weights = [], []

    def on_fit_start(self, distiller):
        self.log.append(f"{self.name}start")

    def on_step_end(self, distiller):
        self.log.append(f"{self.name}step")
        self.rates.append(distiller.optimizer.param_groups[0]["lr"])

    def on_epoch_end(self, distiller, record):
        self.log.append(f"{self.name}epoch")
        self.weights.append(weights(distiller.student))

    def on_fit_end(self, distiller):
        self.log.append(f"{self.name}end")

    def on_exit(self, distiller):
        self.log.append(f"{self.name}exit")


# ---- the loop is the plain loop


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


def test_kd_without_a_teachers_share_is_ce():
    runs = []
    for method in (VanillaKD(alpha=0.0), CrossEntropy()):
        distiller = distiller_of(method, momentum=0.9)
        distiller.fit(loader(shuffle=True), epochs=2)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [
        lambda: VanillaKD(alpha=0.5),
        WeightedSoftLabelKD,
        lambda: TGeoKD(hypergradient="forward"),
        lambda: TGeoKD(hypergradient="last_layer", outer="union"),
    ],
    ids=["kd", "wls", "tgeo", "tgeo-union"],
)
def test_accumulated_batches_are_one_large_batch(method):
    runs, alphas = [], []
    for batch_size, accumulate in ((16, 1), (8, 2)):
        distiller = distiller_of(method(), momentum=0.9, accumulate=accumulate)
        train = DataLoader(ArrayDataset(*data(40)), batch_size)  # 16, 16, 8
        history = distiller.fit(train, held_out(), epochs=3)
        runs.append(weights(distiller.student))
        alphas.append(history["alpha_mean"])
        assert distiller.step == 3 * (4 if distiller.method.outer == "union" else 3)
    assert_close(*runs, rtol=0, atol=1e-6)
    assert alphas[0] == pytest.approx(alphas[1], abs=1e-6)


def test_another_way_to_accumulate_would_show():
    runs = []
    for batch_size, accumulate in ((16, 1), (8, 1)):
        distiller = distiller_of("kd", accumulate=accumulate)
        distiller.fit(loader(40, batch_size), epochs=1)
        runs.append(weights(distiller.student))
    assert max(float((runs[0][k] - runs[1][k]).abs().max()) for k in runs[0]) > 1e-3


# ---- the teacher


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(2, norm=True, dropout=True)
        self.calls = []

    def forward(self, x):
        self.calls.append((self.training or self.inner.training, torch.is_grad_enabled(), len(x)))
        return self.inner(x)


@pytest.mark.parametrize("method", ["kd", "tgeo", "rw", "wls"])
def test_the_teacher_is_in_eval_mode_gets_no_gradient_and_stays_as_it_is(method):
    teacher = Watched().train()
    before = weights(teacher)
    distiller_of(method, teacher=teacher).fit(loader(), held_out(), epochs=2)
    assert_same(weights(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.calls
    assert not any(training or grad for training, grad, _ in teacher.calls)


def test_the_teacher_is_not_run_where_it_is_not_asked():
    teacher = Watched()
    distiller_of("ce", teacher=teacher).fit(loader(), epochs=2)
    assert len(teacher.calls) <= 1  # once for the number of classes
    teacher.calls.clear()
    distiller_of("kd", teacher=teacher).fit(loader(), held_out(), epochs=2)
    assert sum(n for _, _, n in teacher.calls) <= 2 * 24 + 8  # each training sample once an epoch, no held-out ones


def test_a_teacher_of_probabilities_is_the_teacher_of_logits():
    runs = []
    for probs in (False, True):
        teacher = nn.Sequential(mlp(2), nn.Softmax(dim=-1)) if probs else mlp(2)
        distiller = distiller_of(TGeoKD(), teacher=teacher, teacher_probs=probs)
        distiller.fit(loader(shuffle=True), held_out(), epochs=2)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=0, atol=1e-6)


def test_a_hard_teacher_with_zero_probabilities_trains():
    def teacher(x):
        return F.one_hot(mlp(2)(x).argmax(dim=-1), CLASSES).float()

    history = distiller_of(teacher=teacher, teacher_probs=True).fit(loader(), epochs=2)
    assert all(math.isfinite(loss) for loss in history["train_loss"])


def test_logits_given_as_probabilities_are_refused():
    with pytest.raises(InputError, match="Are they logits"):
        distiller_of(teacher_probs=True).fit(loader(), epochs=1)


def test_any_callable_is_a_teacher():
    runs = []
    model = mlp(2).eval()
    for teacher in (model, lambda x: model(x).detach()):
        distiller = distiller_of("kd", teacher=teacher)
        distiller.fit(loader(shuffle=True), epochs=2)
        runs.append(weights(distiller.student))
    assert_same(*runs)


def test_a_teacher_in_double_precision_gives_the_same_ratios():
    model = mlp(2).double().eval()

    def teacher(x):
        return model(x.double()).detach()

    distiller = distiller_of("kd", teacher=teacher)
    distiller.fit(loader(), epochs=1)
    other = distiller_of("kd")
    other.fit(loader(), epochs=1)
    assert_close(weights(distiller.student), weights(other.student), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", ["scalar", "vector"])
def test_tgeo_takes_a_teacher_in_double_precision(encoding):
    model = mlp(2).double().eval()
    distiller = distiller_of(TGeoKD(encoding=encoding), teacher=lambda x: model(x.double()).detach())
    distiller.fit(loader(), held_out(), epochs=1)


# ---- inputs and outputs of other shapes


class OneLogit(nn.Module):
    """A binary model whose output has shape (N, 1) or (N,)."""

    def __init__(self, seed, flat):
        super().__init__()
        self.inner, self.flat = mlp(seed, classes=1), flat

    def forward(self, x):
        return self.inner(x).squeeze(-1) if self.flat else self.inner(x)


class TwoLogits(OneLogit):
    """The same model with the logits (0, z)."""

    def forward(self, x):
        z = self.inner(x)
        return torch.cat([torch.zeros_like(z), z], dim=-1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("method", ["ce", "kd", "ada", "wls", "tgeo", "rw"])
def test_one_logit_is_two_logits(method, flat):
    runs, evaluations = [], []
    for cls in (OneLogit, TwoLogits):
        distiller = distiller_of(method, student=cls(1, flat), teacher=cls(2, flat), momentum=0.9)
        distiller.fit(loader(classes=2, shuffle=True), loader(8, 4, classes=2, seed=7), epochs=2)
        runs.append(weights(distiller.student))
        evaluations.append(distiller.evaluate(loader(classes=2)))
    assert_close(*runs, rtol=0, atol=1e-6)
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)


def test_ce_with_one_logit_is_binary_cross_entropy():
    by_hand = OneLogit(1, flat=True)
    optimizer = SGD(by_hand.parameters(), 0.1)
    for _ in range(2):
        for x, y in loader(classes=2):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(by_hand(x), y.float()).backward()
            optimizer.step()
    student = OneLogit(1, flat=True)
    distiller_of("ce", student=student, teacher=OneLogit(2, flat=False)).fit(loader(classes=2), epochs=2)
    assert_close(weights(student), weights(by_hand), rtol=0, atol=1e-6)


class OfTwo(nn.Module):
    """A model of two inputs."""

    def __init__(self, seed, wrap=False):
        super().__init__()
        self.inner, self.wrap = mlp(seed), wrap

    def forward(self, left, right):
        logits = self.inner(torch.cat([left, right], dim=-1))
        return SimpleNamespace(logits=logits) if self.wrap else logits


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout", "rw"])
@pytest.mark.parametrize("kind", ["dict", "tuple", "dict with .logits"])
def test_inputs_of_several_parts(method, kind):
    def split(batches):
        parts = (({"right": x[:, 2:], "left": x[:, :2]}, y) for x, y in batches)
        return [((x["left"], x["right"]) if kind == "tuple" else x, y) for x, y in parts]

    wrap = kind == "dict with .logits"
    of_parts = distiller_of(method, student=OfTwo(1, wrap), teacher=OfTwo(2, wrap), momentum=0.9)
    history = of_parts.fit(split(loader()), split(held_out()), epochs=2)
    plain = distiller_of(method, momentum=0.9)
    expected = plain.fit([*loader()], [*held_out()], epochs=2)
    assert_same(weights(of_parts.student.inner), weights(plain.student))
    assert history["val_loss"] == expected["val_loss"]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(*data()))


class Unsized:
    """Batches without a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_any_iterable_is_a_loader():
    runs = []
    for train in (loader(), [*loader()], Unsized(loader())):
        distiller = distiller_of("kd")
        distiller.fit(train, held_out(), epochs=2)
        runs.append(weights(distiller.student))
        assert distiller.step == 6
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_a_loader_over_an_iterable_data_set():
    runs = []
    for train in (loader(), DataLoader(Stream(), 8)):
        distiller = distiller_of("kd")
        distiller.fit(train, held_out(), epochs=2)
        runs.append(weights(distiller.student))
    assert_same(*runs)


# ---- schedulers


def halving(optimizer):
    return StepLR(optimizer, 1, gamma=0.5)


def test_a_scheduler_by_epoch():
    recorder = Recorder()
    history = distiller_of(scheduler=halving, callbacks=[recorder]).fit(loader(), epochs=3)
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.025])
    assert recorder.rates == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scheduler_by_step(accumulate):
    recorder = Recorder()
    options = {"scheduler": halving, "scheduler_every": "step", "accumulate": accumulate}
    distiller_of(callbacks=[recorder], **options).fit(loader(), epochs=2)
    steps = 2 * (3 if accumulate == 1 else 2)
    assert recorder.rates == pytest.approx([0.1 * 0.5 ** (k + 1) for k in range(steps)])


def test_the_first_step_uses_the_first_rate():
    plain, halved = mlp(1), mlp(1)
    distiller_of(student=plain).fit(loader(8), epochs=1)
    distiller_of(student=halved, scheduler=halving, scheduler_every="step").fit(loader(8), epochs=1)
    assert_same(weights(plain), weights(halved))


def test_plateau_watches_the_held_out_loss():
    def plateau(optimizer):
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=0)

    # a rate that is too large, so that the loss goes up and down
    history = distiller_of(lr=2.0, scheduler=plateau).fit(loader(), held_out(), epochs=8)
    replayed = SGD([nn.Parameter(torch.zeros(1))], 2.0)
    scheduler = plateau(replayed)
    expected = []
    for loss in history["val_loss"]:
        expected.append(replayed.param_groups[0]["lr"])
        scheduler.step(loss)
    assert history["lr"] == pytest.approx(expected)
    assert len(set(expected)) > 1


# ---- early stopping and callbacks


def test_early_stopping_stops_and_restores_the_best_weights():
    recorder = Recorder()
    distiller = distiller_of("ce", lr=0.3, callbacks=[recorder])
    validation = loader(30, 6, seed=11)
    history = distiller.fit(loader(), validation, epochs=60, patience=3)
    losses = history["val_loss"]
    best = losses.index(min(losses))
    assert best > 1
    assert len(losses) == best + 1 + 3 < 60
    assert_same(weights(distiller.student), recorder.weights[best])
    assert differ(weights(distiller.student), recorder.weights[-1])
    assert distiller.evaluate(validation)["nll"] == pytest.approx(min(losses))


def test_patience_that_never_runs_out_still_restores_the_best():
    recorder = Recorder()
    distiller = distiller_of("ce", lr=1.5, momentum=0.9, callbacks=[recorder])
    history = distiller.fit(loader(), loader(30, 6, seed=11), epochs=6, patience=50)
    assert len(history) == 6
    assert_same(weights(distiller.student), recorder.weights[int(np.argmin(history["val_loss"]))])


def test_callbacks_are_called_in_order():
    log = []
    distiller = distiller_of(callbacks=[Recorder("a ", log), Recorder("b ", log)])
    distiller.fit(loader(16), epochs=2)
    events = ["start", *["step", "step", "epoch"] * 2, "end", "exit"]
    assert log == [f"{who} {event}" for event in events for who in "ab"]


def test_a_callback_can_end_training():
    class Stop(Callback):
        def on_epoch_end(self, distiller, record):
            distiller.should_stop = record["epoch"] == 1

    distiller = distiller_of(callbacks=[Stop()])
    assert len(distiller.fit(loader(), epochs=9)) == 2
    assert len(distiller.fit(loader(), epochs=1)) == 1  # a later fit starts afresh


@pytest.mark.parametrize("where", ["on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_on_exit_is_called_for_all_also_on_an_error(where):
    class Failing(Recorder):
        pass

    def fail(*_):
        raise KeyError("mine")

    log = []
    failing = Failing("a ", log)
    setattr(failing, where, fail)
    with pytest.raises(KeyError, match="mine"):
        distiller_of(callbacks=[failing, Recorder("b ", log)]).fit(loader(), epochs=2)
    assert log[-2:] == ["a exit", "b exit"]


def test_the_progress_bar_shows_the_run(capsys):
    distiller_of(progress=True).fit(loader(), held_out(), epochs=2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "epoch 2/2" in shown
    assert "6/6" in shown
    assert "held-out" in shown


# ---- the record


def test_history_and_metrics_file_hold_the_same(tmp_path):
    distiller = distiller_of(VanillaKD(alpha=0.25))
    history = distiller.fit(loader(), held_out(), epochs=3, out=tmp_path / "run")
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
        "alpha",
        "seconds",
    ]
    assert history["epoch"] == [0, 1, 2]
    assert history["alpha_mean"] == [0.25] * 3
    assert history["no such key"] == [None] * 3
    assert history[-1]["val_accuracy"] == distiller.evaluate(held_out())["accuracy"]
    assert history[-1]["val_loss"] == distiller.evaluate(held_out())["nll"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["last.ckpt", "metrics.jsonl", "student.safetensors"]


def test_without_held_out_data_and_ratios_the_fields_are_absent_or_none():
    record = distiller_of("ce").fit(loader(), epochs=1)[0]
    assert "val_loss" not in record
    assert record["alpha_mean"] is None
    assert record["alpha"] is None


def seen_by(record):
    return sum(sum(group["histogram"]) for group in record["alpha"].values())


@pytest.mark.parametrize("method", [VanillaKD, AnnealingKD, AdaptiveKD, WeightedSoftLabelKD, ReweightingKD])
def test_the_alpha_histogram_counts_every_training_sample_once(method):
    history = distiller_of(method(), accumulate=2).fit(loader(28), held_out(), epochs=2)
    for record in history:
        assert seen_by(record) == 28
        assert sum(group["count"] for group in record["alpha"].values()) == 28


@pytest.mark.parametrize(("outer", "count"), [("holdout", 24), ("train", 24), ("union", 36)])
@pytest.mark.parametrize("method", [TGeoKD, ReweightingKD])
def test_what_each_outer_mode_trains_on(method, outer, count):
    trained_on = []
    student = mlp(1)
    # The loop's own forward passes go through the module; their samples are counted where they carry a graph.
    x_train, x_held = data(24)[0], data(12, seed=7)[0]

    def note(module, inputs, output):
        if module.training and output.grad_fn is not None:
            trained_on.extend(inputs[0].tolist())

    student.register_forward_hook(note)
    distiller = distiller_of(method(outer=outer, hypergradient="finite_difference"), student=student)
    history = distiller.fit(loader(shuffle=True), held_out(), epochs=2)
    assert [seen_by(record) for record in history] == [count] * 2
    expected = sorted([*x_train.tolist(), *(x_held.tolist() if outer == "union" else [])] * 2)
    assert sorted(trained_on) == expected


def test_outer_samples_come_from_where_they_should():
    drawn = {}
    for outer in ("holdout", "train", "union"):
        student, seen = mlp(1), []
        student.register_forward_pre_hook(
            lambda module, inputs, seen=seen: None if module.training else seen.extend(inputs[0].tolist())
        )
        distiller = distiller_of(TGeoKD(outer=outer, every=1, hypergradient="last_layer"), student=student)
        distiller.fit(DataLoader(ArrayDataset(*data(24)), 8), None if outer == "train" else held_out(), epochs=1)
        drawn[outer] = seen
    x_train, x_held = data(24)[0].tolist(), data(12, seed=7)[0].tolist()
    # apart from the first batch, looked at before training, only held-out samples meet the student in eval mode
    for outer in ("holdout", "union"):
        assert all(row in x_held for row in drawn[outer][8:])
    assert all(row in x_train for row in drawn["train"])
    assert len(drawn["train"]) == 8 + 3 * 8


# ---- precision


@pytest.mark.parametrize("method", ["ce", "kd", "ada", "wls", "anl"])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-6), ("bf16-mixed", 2e-2)])
def test_other_precisions_run_and_agree(method, precision, tolerance):
    runs = []
    for setting in ("32-true", precision):
        distiller = distiller_of(method, precision=setting)
        history = distiller.fit(loader(), held_out(), epochs=2)
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
    history = distiller_of(method, precision=precision).fit(loader(), held_out(), epochs=2)
    assert all(math.isfinite(loss) for loss in history["train_loss"])


def test_rw_runs_in_mixed_precision():
    distiller_of(ReweightingKD(), precision="bf16-mixed").fit(loader(), held_out(), epochs=1)


@pytest.mark.parametrize("precision", ["16-mixed", "16", 16])
def test_scaled_half_precision_is_refused(precision):
    with pytest.raises(InputError, match="precision '16-mixed' scales the loss"):
        distiller_of(precision=precision)


# ---- evaluation


def test_evaluation_agrees_with_scikit_learn():
    student = mlp(1, norm=True, dropout=True)
    distiller = distiller_of("ce", student=student)
    distiller.fit(loader(), epochs=2)
    x, y = data(50, seed=9)
    before = weights(student)
    found = distiller.evaluate(DataLoader(TensorDataset(x, y), 7))
    with torch.no_grad():
        probs = student.eval()(x).softmax(dim=-1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(y, probs.argmax(axis=1)))
    assert found["nll"] == pytest.approx(log_loss(y, probs, labels=[0, 1, 2]), rel=1e-5)
    assert_same(weights(student), before)


def test_evaluation_before_training_leaves_the_modes_alone():
    student = mlp(1, norm=True)
    student[1].eval()
    modes = [module.training for module in student.modules()]
    distiller = distiller_of("ce", student=student)
    distiller.evaluate(loader())
    assert [module.training for module in student.modules()] == modes


def test_an_empty_evaluation_is_refused():
    with pytest.raises(InputError, match="the loader to evaluate on is empty"):
        distiller_of("ce").evaluate([])


@pytest.mark.parametrize("method", ["kd", "ada", "wls", "tgeo"])
def test_ratios_come_in_the_order_of_the_loader(method):
    distiller = distiller_of(method, student=mlp(1, dropout=True))
    distiller.fit(loader(shuffle=True), held_out(), epochs=2)
    x, y = data(30, seed=13)
    whole = distiller.fusion_ratios([(x, y)])
    assert whole.shape == (30,)
    torch.testing.assert_close(distiller.fusion_ratios(DataLoader(TensorDataset(x, y), 7)), whole)
    torch.testing.assert_close(distiller.fusion_ratios([(x.flip(0), y.flip(0))]), whole.flip(0))
    if method != "kd":
        assert whole.std() > 0


def test_ratios_of_ada_by_hand():
    distiller = distiller_of("ada")
    distiller.fit(loader(), epochs=1)
    x, y = data(9, seed=13)
    probs = mlp(2)(x).softmax(dim=-1).detach().numpy()
    margin = [max(0.0, p[k] - np.delete(p, k).mean()) for p, k in zip(probs, y, strict=True)]
    assert distiller.fusion_ratios([(x, y)]).tolist() == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize("method", ["ce", "rw"])
def test_methods_without_ratios_say_so(method):
    distiller = distiller_of(method)
    distiller.fit(loader(), held_out(), epochs=1)
    with pytest.raises(NotImplementedError):
        distiller.fusion_ratios(loader())


def test_ratios_of_ce_without_a_teacher():
    student = mlp(1)
    distiller = Distiller(student, None, "ce", SGD(student.parameters(), 0.1), accelerator="cpu", progress=False)
    distiller.fit(loader(), epochs=1)
    with pytest.raises(NotImplementedError):
        distiller.fusion_ratios(loader())


def test_ratios_of_nothing_are_refused():
    with pytest.raises(InputError, match="empty"):
        distiller_of("kd").fusion_ratios([])


# ---- randomness

METHODS = ["ce", "kd", "anl", "ada", "wls", "rw", "tgeo"]


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_result_and_another_seed_another(method):
    runs, histories = [], []
    for noise, seed in ((0, 3), (1, 3), (0, 4)):
        student, teacher = mlp(1, dropout=True), mlp(2)
        torch.manual_seed(noise)  # what came before must not matter
        np.random.seed(noise)
        distiller = distiller_of(method, student=student, teacher=teacher, momentum=0.9)
        histories.append(distiller.fit(loader(shuffle=True), held_out(), epochs=2, seed=seed))
        runs.append(weights(student))
    assert_same(runs[0], runs[1])
    for a, b in zip(histories[0], histories[1], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert differ(runs[0], runs[2])


@pytest.mark.parametrize("method", ["kd", "wls"])
def test_whether_the_held_out_set_is_evaluated_does_not_change_training(method):
    runs = []
    for validation in (None, held_out(), loader(12, 6, seed=7, shuffle=True)):
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


def test_the_survey_before_training_does_not_change_training():
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


# ---- what the user may get wrong


def out_is_clean(out):
    return not out.exists() or not any(out.iterdir())


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
    "label too large": (
        "kd",
        {},
        lambda: bad_label(0, 12),
        held_out,
        "training loader has label 12 but the student has 3",
    ),
    "label negative": (
        "kd",
        {},
        lambda: bad_label(3, -1),
        held_out,
        "training loader has label -1 but the student has 3",
    ),
    "late label": ("kd", {}, lambda: bad_label(20, 3), held_out, "training loader has label 3 but the student has 3"),
    "late label, tgeo": ("tgeo", {}, lambda: bad_label(20, 3), held_out, "training loader has label 3 but the"),
    "held-out label": ("kd", {}, loader, lambda: bad_label(9, 5, 12), "has label 5 but the student has 3 classes"),
    "held-out label, tgeo": (
        "tgeo, holdout",
        {},
        loader,
        lambda: bad_label(9, 5, 12),
        "held-out loader has label 5 but the",
    ),
    "float labels": ("ce", {}, lambda: with_labels(torch.zeros(24)), held_out, "dtype int64, not torch.float32"),
    "2-D labels": ("ce", {}, lambda: with_labels(torch.zeros(24, 3)), held_out, r"shape \(N,\), not shape \(8, 3\)"),
    "labels in a list": ("ce", {}, lambda: [(data(2)[0], [0, 1])], held_out, r"shape \(N,\), not list"),
    "no pairs": (
        "ce",
        {},
        lambda: [data(2)[0]],
        held_out,
        r"training loader must yield \(inputs, target\) or \(inputs, target, ids\), not Tensor",
    ),
    "quadruples": (
        "ce",
        {},
        lambda: [(1, 2, 3, 4)],
        held_out,
        r"training loader must yield \(inputs, target\) or \(inputs, target, ids\), not tuple",
    ),
    "class counts": (
        "kd",
        {"teacher": lambda: mlp(2, classes=5)},
        loader,
        held_out,
        "the student has 3 classes but the teacher has 5",
    ),
    "NaN student": (
        "kd",
        {"student": nan_weights},
        loader,
        held_out,
        "student's logits are NaN or infinite in step 0;",
    ),
    "NaN student, ce": ("ce", {"student": nan_weights}, loader, held_out, "student's logits are NaN .* in step 0;"),
    "NaN teacher": (
        "kd",
        {"teacher": nan_weights},
        loader,
        held_out,
        "teacher's logits are NaN or infinite in step 0$",
    ),
    "NaN teacher later": ("kd", {"teacher": lambda: nan_from(2)}, loader, held_out, "teacher's logits .* in step 2$"),
    "NaN teacher, tgeo": (
        "tgeo",
        {"teacher": lambda: nan_from(2)},
        loader,
        held_out,
        r"teacher's logits .* \(before step 0\)",
    ),
    "teacher of probabilities": ("kd", {"teacher_probs": lambda: True}, loader, held_out, "Are they logits"),
    "3-D logits": (
        "ce",
        {"student": lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Unflatten(1, (2, 3)))},
        loader,
        held_out,
        r"logits must have shape .* not \(8, 2, 3\)",
    ),
    "empty loader": ("kd", {}, empty, held_out, "the training loader is empty"),
    "empty list": ("kd", {}, list, held_out, "the training loader is empty"),
    "empty iterable": ("kd", {}, lambda: Unsized([]), held_out, "the training loader is empty"),
    "empty held-out": ("tgeo", {}, loader, empty, "the held-out loader is empty"),
    "empty held-out list": ("rw", {}, loader, list, "the held-out loader is empty"),
    "empty held-out, kd": ("kd", {}, loader, empty, "the held-out loader is empty"),
    "no held-out": ("tgeo", {}, loader, lambda: None, "method 'tgeo' with outer='union' needs a val_loader"),
    "held-out lacks a class": (
        "tgeo",
        {},
        loader,
        lambda: without_class(1),
        "the held-out set has no sample of class 1,",
    ),
    "held-out lacks a class, rw": (
        "rw",
        {},
        loader,
        lambda: without_class(2),
        "held-out set has no sample of class 2,",
    ),
    "temperature 0": ("kd", {"temperature": lambda: 0.0}, loader, held_out, "temperature must be > 0, not 0.0"),
    "temperature < 0, ce": ("ce", {"temperature": lambda: -2.0}, loader, held_out, "temperature must be > 0, not -2.0"),
    "accumulate 0": ("kd", {"accumulate": lambda: 0}, loader, held_out, "accumulate must be >= 1, not 0"),
    "clip 0": ("kd", {"clip_norm": lambda: 0.0}, loader, held_out, "clip_norm must be > 0, not 0.0"),
    "scheduler_every": (
        "kd",
        {"scheduler_every": lambda: "day"},
        loader,
        held_out,
        "must be 'epoch' or 'step', not 'day'",
    ),
    "method": ("kdd", {}, loader, held_out, "unknown method 'kdd'; did you mean 'kd'"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_refused_with_a_message_and_nothing_is_written(case, tmp_path):
    method, options, train, validation, message = BAD[case]
    out = tmp_path / "run"

    def run():
        distiller = distiller_of(method, **{name: make() for name, make in options.items()})
        distiller.fit(train(), validation(), epochs=2, out=out)

    with pytest.raises(InputError, match=message):
        run()
    assert out_is_clean(out)


@pytest.mark.parametrize("method", ["kd", "anl", "ada", "wls", "rw", "tgeo"])
def test_a_method_that_needs_a_teacher_refuses_none(method):
    student = mlp(1)
    with pytest.raises(InputError, match=f"method '{method}' needs a teacher, and None was given"):
        Distiller(student, None, method, SGD(student.parameters(), 0.1), accelerator="cpu", progress=False)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": 1, "patience": 0}, {"epochs": 1, "resume": True}])
def test_impossible_arguments_of_fit(options, tmp_path):
    options.setdefault("out", None if "resume" in options else tmp_path / "run")
    with pytest.raises(InputError, match=r"epochs|patience|resume needs the folder of the run"):
        distiller_of().fit(loader(), held_out(), **options)
    assert not any(tmp_path.iterdir())


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
    with pytest.raises(
        InputError, match=f"student's logits are NaN or infinite in step {first_bad}; a lower learning rate"
    ):
        distiller_of("ce", lr=1e25).fit(loader(), epochs=4)


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    distiller_of().fit(loader(), epochs=1, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="already holds a run"):
        distiller_of().fit(loader(), epochs=2, out=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(InputError, match="cannot write to the folder"):
        distiller_of(callbacks=[recorder]).fit(loader(), epochs=1, out=tmp_path / "file" / "run")
    assert recorder.log == []


def test_plateau_by_step_is_refused_before_training():
    recorder = Recorder()
    with pytest.raises(InputError, match="ReduceLROnPlateau"):
        distiller_of(scheduler=ReduceLROnPlateau, scheduler_every="step", callbacks=[recorder]).fit(
            loader(), held_out(), epochs=1
        )
    assert recorder.log == []


def test_only_a_method_that_looks_ahead_asks_for_an_optimizer_with_a_known_derivative():
    def make(method, **options):
        student = mlp(1)
        optimizer = torch.optim.RMSprop(student.parameters(), 1e-3)
        return Distiller(student, mlp(2), method, optimizer, accelerator="cpu", progress=False, **options)

    for method in ("ce", "kd", "anl", "ada", "wls", "rw"):
        make(method).fit(loader(), held_out(), epochs=1)
    with pytest.raises(InputError, match="no derivative is known for the step of RMSprop"):
        make("tgeo")
    make("tgeo", assume_sgd=True).fit(loader(), held_out(), epochs=1)


def test_a_training_class_the_teacher_never_saw_is_named_once():
    x, y = data(24)
    keep = y != 1
    with pytest.warns(
        UserWarning, match="no training sample of class 1: its teacher mean is taken to be uniform"
    ) as caught:
        distiller_of("tgeo, holdout").fit(DataLoader(TensorDataset(x[keep], y[keep]), 8), held_out(), epochs=2)
    assert len([w for w in caught if "no training sample" in str(w.message)]) == 1


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout"])
def test_held_out_labels_that_are_no_tensor_are_refused(method):
    with pytest.raises(InputError, match=r"shape \(N,\), not list"):
        distiller_of(method).fit(loader(), [(data(3)[0], [0, 1, 2])], epochs=1)


def test_labels_out_of_range_in_an_evaluation_before_training():
    with pytest.raises(InputError, match="has label 7 but the student has 3 classes"):
        distiller_of("ce").evaluate(bad_label(0, 7))


def test_held_out_batches_that_can_be_read_only_once_are_refused():
    with pytest.raises(InputError):
        distiller_of("tgeo").fit(loader(), iter([*held_out()]), epochs=1)


@pytest.mark.parametrize("options", [{"scheduler": ReduceLROnPlateau}, {"patience": 1}])
def test_what_needs_a_held_out_loss_is_refused_before_training(options):
    recorder = Recorder()
    patience = options.get("patience")
    distiller = distiller_of(scheduler=options.get("scheduler"), callbacks=[recorder])
    with pytest.raises(InputError, match="val_loader"):
        distiller.fit(loader(), epochs=1, patience=patience)
    assert recorder.log == []


def test_a_binary_teacher_of_one_probability():
    runs = []
    teacher = mlp(2, classes=1)
    for probs in (False, True):
        distiller = distiller_of(
            student=mlp(1, classes=1),
            teacher=(lambda x: teacher(x).detach().sigmoid()) if probs else teacher,
            teacher_probs=probs,
        )
        distiller.fit(loader(classes=2), epochs=1)
        runs.append(weights(distiller.student))
    assert_close(*runs, rtol=0, atol=1e-6)


def test_a_teacher_put_back_into_training_mode_is_still_run_in_eval_mode():
    teacher = mlp(2, norm=True)
    distiller = distiller_of(teacher=teacher)
    teacher.train()
    before = weights(teacher)
    distiller.fit(loader(), epochs=1)
    assert_same(weights(teacher), before)


def test_a_sampler_of_the_users_is_used():
    x, y = data()
    train = DataLoader(TensorDataset(x, y), 8, sampler=RandomSampler(range(24), replacement=True, num_samples=16))
    history = distiller_of("kd").fit(train, epochs=1)
    assert seen_by(history[0]) == 16


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
    with pytest.raises(InputError, match="NaN"):
        distiller.fit(loader(), held_out(), epochs=1)
    assert len(distiller.fit(loader(), held_out(), epochs=1)) == 1


# ---- sample ids and stored predictions


class Steps(nn.Module):
    """A network whose logits are whole 64ths: the same whatever batch a sample comes in."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(2)

    def forward(self, x):
        return (64 * self.inner(x)).round() / 64


def named(n, seed, first, **options):
    """Batches of three parts; the ids are far apart and in no order."""
    x, y = data(n, seed)
    ids = first + 7 * torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return DataLoader(ArrayDataset(x, y, ids), 8, **options)


def stored_of(teacher, *loaders):
    """The teacher's answers, asked sample by sample."""
    samples = [sample for part in loaders for x, _, ids in part for sample in zip(x, ids, strict=True)]
    with torch.no_grad():
        logits = torch.stack([teacher(x[None])[0] for x, _ in samples])
    return StoredPredictions(logits, torch.stack([name for _, name in samples]))


def trained(method, teacher, *, ids=True, **options):
    train, val = named(24, 0, 1000, shuffle=True), named(12, 7, 5000)
    if not ids:
        train, val = [DataLoader(TensorDataset(p.dataset.inputs, p.dataset.target), 8) for p in (train, val)]
    distiller = distiller_of(method(), teacher=teacher, momentum=0.9, **options)
    history = distiller.fit(train, val, epochs=3, seed=4)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history], distiller


@pytest.mark.parametrize(
    "method",
    [
        VanillaKD,
        AdaptiveKD,
        ReweightingKD,
        TGeoKD,
        lambda: TGeoKD(outer="union"),
        lambda: TGeoKD(outer="train", outer_batch_size=5),
        lambda: TGeoKD(encoding="vector", hypergradient="last_layer"),
    ],
    ids=["kd", "ada", "rw", "tgeo", "tgeo union", "tgeo train", "tgeo vector"],
)
def test_stored_predictions_train_exactly_as_the_teacher_they_are_of(method):
    teacher = Steps()
    stored = stored_of(teacher, named(24, 0, 1000), named(12, 7, 5000))
    live, by_live = trained(method, teacher)
    kept, by_kept = trained(method, stored)
    assert kept == live
    assert_same(weights(by_kept.student), weights(by_live.student))
    assert live[0]["alpha"] is not None
    train = named(24, 0, 1000)
    if method is not ReweightingKD:
        assert torch.equal(by_kept.fusion_ratios(train), by_live.fusion_ratios(train))


def test_stored_predictions_are_found_by_id_not_by_place():
    teacher = Steps()
    stored = stored_of(teacher, named(24, 0, 1000), named(12, 7, 5000))
    moved = StoredPredictions(stored.stored_logits, stored.ids.roll(1))
    assert trained(VanillaKD, moved)[0] != trained(VanillaKD, stored)[0]


def test_ids_change_nothing_for_a_network_as_teacher():
    with_ids = distiller_of("kd")
    x, y = data()
    a = with_ids.fit([(x, y, torch.arange(24))], epochs=2)
    without = distiller_of("kd")
    b = without.fit([(x, y)], epochs=2)
    assert_same(weights(with_ids.student), weights(without.student))
    assert a["train_loss"] == b["train_loss"]


def test_stored_predictions_need_ids(tmp_path):
    stored = StoredPredictions(torch.zeros(36, CLASSES), torch.arange(36))
    with pytest.raises(InputError, match="ids"):
        distiller_of("kd", teacher=stored).fit(loader(), held_out(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["kd", "tgeo, holdout"])
def test_a_sample_that_is_not_stored_is_named(tmp_path, method):
    x, y = data()
    stored = StoredPredictions(torch.zeros(36, CLASSES), torch.arange(36))
    train = [(x, y, torch.arange(24) + 20)]
    with pytest.raises(InputError, match=r"sample 36;.* 0 to 35$"):
        distiller_of(method, teacher=stored).fit(train, held_out(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stored_predictions_of_other_classes_are_refused():
    x, y = data()
    stored = StoredPredictions(torch.zeros(24, 5), torch.arange(24))
    with pytest.raises(InputError, match="the student has 3 classes but the teacher has 5"):
        distiller_of("kd", teacher=stored).fit([(x, y, torch.arange(24))], epochs=1)


# ---- metrics of choice


TWO = Metrics(("nll", "auc", "accuracy"), primary="auc")


def test_chosen_metrics_are_those_of_scikit_learn_and_stand_in_the_epochs():
    train, val = loader(classes=2), loader(12, 6, seed=7, classes=2)
    distiller = distiller_of("kd", student=mlp(1, classes=2), teacher=mlp(2, classes=2), metrics=TWO)
    history = distiller.fit(train, val, epochs=3)
    logits, target = distiller.predict(val)
    found = distiller.evaluate(val)
    assert list(found) == ["nll", "auc", "accuracy"]
    probs = logits.double().softmax(dim=1).numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(target, probs[:, 1]))
    assert found["nll"] == pytest.approx(log_loss(target, probs))
    assert history[-1]["val_auc"] == found["auc"]
    assert history[-1]["val_accuracy"] == found["accuracy"] == pytest.approx(accuracy_score(target, probs.argmax(1)))
    assert history[-1]["val_loss"] == found["nll"]
    assert len(set(history["val_auc"]) | set(history["val_loss"])) > 3  # they move


def test_metrics_without_what_every_epoch_records_are_refused():
    with pytest.raises(InputError, match=r"^metrics must have accuracy and nll, .* not only macro_f1, nll$"):
        distiller_of("kd", metrics=Metrics(("macro_f1", "nll"), primary="nll"))


def test_predictions_come_in_the_loader_s_order():
    distiller = distiller_of("kd", student=mlp(1, norm=True, dropout=True))
    x, y = data()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    batches = [(x[rows], y[rows], rows) for rows in order.split(5)]
    logits, target = distiller.predict(batches)
    assert torch.equal(target, y[order])
    distiller.student.eval()
    torch.testing.assert_close(logits, distiller.student(x).detach()[order])
    assert logits.shape == (24, CLASSES)
    assert logits.std(dim=0).min() > 0.01  # rows that can be told apart


# ---- training on the held-out samples too


@pytest.mark.parametrize("options", [{"patience": 2}, {"scheduler": lambda o: ReduceLROnPlateau(o)}])
def test_what_watches_the_held_out_loss_is_refused_where_the_student_trains_on_it(tmp_path, options):
    patience = options.pop("patience", None)
    for method, refused in ((TGeoKD(), True), (TGeoKD(outer="holdout"), False)):
        distiller = distiller_of(method, **options)
        if not refused:
            assert len(distiller.fit(loader(), held_out(), epochs=1, patience=patience)) == 1
            continue
        with pytest.raises(
            InputError, match="outer='union' trains on the held-out samples: give method 'tgeo' outer='holdout'"
        ):
            distiller.fit(loader(), held_out(), epochs=1, patience=patience, out=tmp_path / "run")
        assert out_is_clean(tmp_path / "run")


def test_that_the_student_trains_on_held_out_samples_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="tgeokd.training.distiller"):
        distiller_of(TGeoKD(outer="holdout")).fit(loader(), held_out(), epochs=1)
        assert "held-out samples too" not in caplog.text
        distiller_of(TGeoKD()).fit(loader(), held_out(), epochs=1)
    assert caplog.text.count("the student trains on the held-out samples too") == 1
