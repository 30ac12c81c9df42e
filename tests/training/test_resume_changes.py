"""A run that is resumed with another setting: refused by name, or the new value where the user accepts it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resumed_runs import At, CutOff, assert_same_end, contents, save_and_crash
from small_training import data, refused
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from tgeokd import Distiller
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.digest import WHOLE, content_digest
from tgeokd.training.callbacks import Callback
from tgeokd.training.fingerprint import CHANGEABLE
from tgeokd.utils.errors import InputError


def made(
    scheduler=None, *, optimizer=lambda p: SGD(p, 0.1, momentum=0.9), method="kd", callbacks=(), student=None, **options
):
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) if student is None else student
    torch.manual_seed(2)
    teacher = nn.Linear(4, 3)
    built = optimizer(student.parameters())
    if scheduler is not None:
        options["scheduler"] = scheduler(built)
    options = {"accelerator": "cpu", "progress": False, "callbacks": callbacks, **options}
    return Distiller(student, teacher, method, built, **options)


def fit(distiller, epochs, out=None, *, samples=None, batch_size=8, shuffle=True, drop_last=False, **options):
    samples = TensorDataset(*data(20)) if samples is None else samples
    train = DataLoader(samples, batch_size, shuffle=shuffle, drop_last=drop_last)
    distiller.fit(train, DataLoader(TensorDataset(*data(12, 7)), 6), epochs=epochs, out=out, **options)
    return distiller


# ---- the schedule


SCHEDULES = {
    "cosine": (lambda n: lambda o: CosineAnnealingLR(o, n), "epoch"),
    "milestones": (lambda n: lambda o: MultiStepLR(o, [n // 2, n - 1]), "epoch"),
    "one cycle": (lambda n: lambda o: OneCycleLR(o, 0.3, total_steps=3 * n + 1), "step"),
    "chained": (lambda n: lambda o: ChainedScheduler([LinearLR(o), CosineAnnealingLR(o, n)]), "epoch"),
    "warm-up": (lambda n: lambda o: SequentialLR(o, [LinearLR(o), CosineAnnealingLR(o, n)], [2]), "epoch"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_longer_schedule_is_refused_or_continues_at_its_place(tmp_path, name):
    build, every = SCHEDULES[name]

    def of(epochs):
        return made(build(epochs), scheduler_every=every)

    fit(of(4), 4, tmp_path)
    before = contents(tmp_path)
    with refused("epochs", 4, 8, "accept_changes"):
        fit(of(8), 8, tmp_path, resume=True)
    assert contents(tmp_path) == before
    resumed = fit(of(8), 8, tmp_path, resume=True, accept_changes=["epochs", "scheduler"])
    whole = fit(of(8), 8)
    assert resumed.resumed_at == 4
    assert resumed.history["lr"][4:] == pytest.approx(whole.history["lr"][4:], rel=1e-9)
    assert len(set(whole.history["lr"])) > 1
    # resumed once more, the run has the new schedule
    again = fit(of(8), 8, tmp_path, resume=True)
    assert_same_end(again, resumed)


def test_a_schedule_of_plateaus_is_replayed_from_the_history(tmp_path):
    def of(factor):
        return made(lambda o: ReduceLROnPlateau(o, factor=factor, patience=1, threshold=1e9, threshold_mode="abs"))

    fit(of(0.5), 5, tmp_path)
    with refused("scheduler.factor", 0.5, 0.3):
        fit(of(0.3), 5, tmp_path, resume=True)
    resumed = fit(of(0.3), 7, tmp_path, resume=True, accept_changes=["scheduler", "epochs"])
    whole = fit(of(0.3), 7)
    assert resumed.history["lr"][5:] == pytest.approx(whole.history["lr"][5:])
    assert whole.history["lr"][-1] < 0.1


def test_the_old_schedule_for_more_epochs_is_warned_about(tmp_path, caplog):
    fit(made(lambda o: CosineAnnealingLR(o, 4)), 4, tmp_path)
    fit(made(lambda o: CosineAnnealingLR(o, 4)), 5, tmp_path, resume=True, accept_changes=["epochs"])
    assert [record.levelname for record in caplog.records if "CosineAnnealingLR" in record.message] == ["WARNING"]


def test_a_schedule_that_is_too_short_is_refused(tmp_path):
    def of(steps):
        return made(lambda o: OneCycleLR(o, 0.3, total_steps=steps), scheduler_every="step")

    fit(of(13), 4, tmp_path)
    with refused("schedule"):
        fit(of(5), 5, tmp_path, resume=True, accept_changes=["epochs", "scheduler"])


def test_a_loss_that_depends_on_the_number_of_epochs_counts_as_a_schedule(tmp_path):
    fit(made(method="anl"), 2, tmp_path)
    with refused("epochs", 2, 3):
        fit(made(method="anl"), 3, tmp_path, resume=True)
    fit(made(method="anl"), 3, tmp_path, resume=True, accept_changes=["epochs"])


def test_a_scheduler_that_has_run_is_not_replayed(tmp_path):
    distiller = fit(made(lambda o: StepLR(o, 1)), 2, tmp_path)
    fit(distiller, 2, tmp_path, resume=True)  # the same Distiller, unchanged
    with refused("anew"):
        fit(distiller, 3, tmp_path, resume=True, accept_changes=["epochs"])


# ---- the optimizer


def test_another_class_of_optimizer_is_one_clear_error(tmp_path):
    fit(made(), 1, tmp_path)
    for accept in ([], ["optimizer"]):
        with refused("SGD", "Adam", "student.safetensors") as _:
            fit(made(optimizer=lambda p: Adam(p, 0.01)), 2, tmp_path, resume=True, accept_changes=accept)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.05, "momentum": 0.9}, ["optimizer.lr", 0.1, 0.05]),
        ({"lr": 0.1, "momentum": 0.8}, ["optimizer.momentum", 0.9, 0.8]),
        ({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, ["optimizer.weight_decay", 0.01]),
        ({"lr": 0.1, "momentum": 0.9, "nesterov": True}, ["optimizer.nesterov", True]),
    ],
)
@pytest.mark.parametrize("schedule", [None, lambda o: StepLR(o, 1, 0.5)])
def test_hyperparameters_of_the_optimizer(tmp_path, changed, named, schedule):
    fit(made(schedule), 2, tmp_path)
    with refused(*named):
        fit(made(schedule, optimizer=lambda p: SGD(p, **changed)), 2, tmp_path, resume=True)
    accepted = made(schedule, optimizer=lambda p: SGD(p, **changed))
    fit(accepted, 2, tmp_path, resume=True, accept_changes=["optimizer"])
    group = accepted.optimizer.param_groups[0]
    assert {key: group[key] for key in changed if key != "lr"} == {k: v for k, v in changed.items() if k != "lr"}
    assert group["lr"] == pytest.approx(changed["lr"] * (0.25 if schedule else 1))
    assert any("momentum_buffer" in state for state in accepted.optimizer.state.values())


def test_the_same_distiller_resumes_although_its_rate_has_moved(tmp_path):
    class Halves(Callback):
        def on_epoch_end(self, distiller, record):
            distiller.optimizer.param_groups[0]["lr"] /= 2

    distiller = fit(made(callbacks=[Halves()]), 2, tmp_path)
    fit(distiller, 4, tmp_path, resume=True)
    assert distiller.history["lr"] == [0.1, 0.05, 0.025, 0.0125]


def test_parameters_in_another_order_are_refused_by_name(tmp_path):
    fit(made(student=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))), 1, tmp_path)
    before = contents(tmp_path)
    with refused("0.weight", "2.bias"):
        fit(
            made(
                student=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)),
                optimizer=lambda p: SGD([*p][::-1], 0.1, momentum=0.9),
            ),
            *(2, tmp_path),
            resume=True,
        )
    assert contents(tmp_path) == before


class Unfreeze(Callback):
    """Freezes the first layer at the start, and trains it too from the second epoch on."""

    def __init__(self, crash_in=None):
        self.crash_in = crash_in

    def on_fit_start(self, distiller):
        distiller.student[0].requires_grad_(False)

    def on_epoch_end(self, distiller, record):
        if record["epoch"] == 0:
            distiller.student[0].requires_grad_(True)
            distiller.optimizer.add_param_group({"params": [*distiller.student[0].parameters()], "lr": 0.05})

    def on_step_end(self, distiller):
        if distiller.epoch == self.crash_in:
            raise CutOff


@pytest.mark.parametrize("schedule", [None, lambda o: StepLR(o, 1, 0.5)])
@pytest.mark.parametrize("crash_in", [1, 2])
def test_a_group_added_during_training_is_resumed(tmp_path, crash_in, schedule):
    def of(crash_in=None):
        head = lambda p: SGD([*p][2:], 0.1, momentum=0.9)  # noqa: E731
        return made(schedule, optimizer=head, callbacks=[Unfreeze(crash_in)])

    with pytest.raises(CutOff):
        fit(of(crash_in), 4, tmp_path)
    resumed, whole = fit(of(), 4, tmp_path, resume=True), fit(of(), 4)
    assert_same_end(resumed, whole)
    assert len(resumed.optimizer.param_groups) == 2
    assert whole.student[0].weight.requires_grad


def test_other_frozen_layers_are_refused_or_accepted(tmp_path):
    def frozen(layer):
        student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        student[layer].requires_grad_(False)
        return student

    fit(made(student=frozen(0)), 1, tmp_path)
    with refused("trainable", 27, 40):
        fit(made(student=frozen(2)), 2, tmp_path, resume=True)
    resumed = fit(made(student=frozen(2)), 2, tmp_path, resume=True, accept_changes=["trainable"])
    assert [p.requires_grad for p in resumed.student.parameters()] == [True, True, False, False]


def test_a_group_of_parameters_outside_the_student_is_refused_with_the_way_out(tmp_path):
    class Adds(Callback):
        def on_epoch_end(self, distiller, record):
            distiller.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})

    fit(made(callbacks=[Adds()]), 1, tmp_path)
    with refused("group 1", "add_param_group"):
        fit(made(), 2, tmp_path, resume=True)


# ---- other settings


CHANGES = {
    "batch_size": ({}, {"batch_size": 5}),
    "temperature": ({"temperature": 2.0}, {}),
    "clip_norm": ({"clip_norm": 0.5}, {}),
    "accumulate": ({"accumulate": 2}, {}),
    "loader": ({}, {"shuffle": False}),
    "data": ({}, {"samples": TensorDataset(*data(20, 3))}),
    "seed": ({}, {"seed": 5}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_or_accepted_by_its_name(tmp_path, name):
    options, loaders = CHANGES[name]
    fit(made(), 1, tmp_path)
    before = contents(tmp_path)
    other = next(each for each in CHANGEABLE if each != name)
    for accept in ([], [other]):
        with refused(name, "accept_changes"):
            fit(made(**options), 2, tmp_path, resume=True, accept_changes=accept, **loaders)
    assert contents(tmp_path) == before
    resumed = fit(made(**options), 2, tmp_path, resume=True, accept_changes=[name], **loaders)
    assert (resumed.resumed_at, len(resumed.history)) == (1, 2)
    fit(made(**options), 3, tmp_path, resume=True, **loaders)  # from now on these are the settings of the run


def test_the_same_number_of_other_samples_is_noticed(tmp_path):
    x, y = data(20)
    fit(made(), 1, tmp_path, samples=TensorDataset(x, y))
    moved = y.clone()
    moved[3] = (moved[3] + 1) % 3
    with refused("data.training content"):
        fit(made(), 2, tmp_path, samples=TensorDataset(x, moved), resume=True)
    fit(made(), 2, tmp_path, samples=TensorDataset(x.clone(), y.clone()), resume=True)


@pytest.mark.parametrize("name", ["batch_size", "data", "loader"])
def test_the_batches_of_a_begun_epoch_cannot_change(tmp_path, name):
    options, loaders = CHANGES[name]
    with pytest.raises(CutOff):
        fit(made(callbacks=[At(4, save_and_crash)]), 3, tmp_path)
    with refused("epoch 2", name):
        fit(made(**options), 3, tmp_path, resume=True, accept_changes=[name], **loaders)
    fit(made(temperature=2.0), 3, tmp_path, resume=True, accept_changes=["temperature"])


def test_names_of_changes_are_checked(tmp_path):
    with refused("'epoch'", "'epochs'"):
        fit(made(), 1, tmp_path, resume=True, accept_changes=["epoch"])
    with refused("resume"):
        fit(made(), 1, tmp_path, accept_changes=["epochs"])
    with refused("list", "'epochs'"):
        fit(made(), 1, tmp_path, resume=True, accept_changes="epochs")
    assert not [*tmp_path.iterdir()]


# ---- the digest of data


class Listed(torch.utils.data.Dataset):
    def __init__(self, targets):
        self.targets, self._cache, self.reads = targets, torch.rand(3), 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        raise AssertionError("no sample is fetched")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 3), st.sampled_from(["tensors", "arrays", "subset", "concat", "batches"]))
def test_one_other_value_is_another_digest(row, column, kind):
    def digest(x, y):
        made = {
            "tensors": lambda: TensorDataset(x, y),
            "arrays": lambda: ArrayDataset(x, y),
            "subset": lambda: Subset(TensorDataset(x, y), range(10)),
            "concat": lambda: ConcatDataset([TensorDataset(x, y), TensorDataset(x, y)]),
            "batches": lambda: [(x[:5], y[:5]), {"inputs": x[5:], "labels": y[5:]}],
        }
        return content_digest(made[kind]())

    x, y = data(10)
    other_x, other_y = x.clone(), y.clone()
    other_x[row, column] += 1e-3
    other_y[row] += 1
    assert digest(x, y) == digest(x.clone(), y.clone())
    assert len({digest(x, y), digest(other_x, y), digest(x, other_y)}) == 3


def test_what_the_digest_looks_at():
    assert content_digest(Listed([0, 1])) == content_digest(Listed([0, 1])) != content_digest(Listed([1, 0]))
    whole = TensorDataset(*data(10))
    assert content_digest(Subset(whole, [1, 2])) != content_digest(Subset(whole, [2, 1]))
    assert content_digest(iter([])) is None
    assert content_digest(None) is None
    assert content_digest(TensorDataset(torch.zeros(3, dtype=torch.bfloat16))) is not None


def test_a_large_tensor_is_sampled():
    large = np.zeros(2 * WHOLE, dtype=np.uint8)
    other = large + 1
    assert content_digest([large]) == content_digest([large.copy()]) != content_digest([other])


def test_settings_of_before_are_no_error_of_another_kind(tmp_path):
    """All differences are named at once, and the optimizer's own are left out where its class differs."""
    fit(made(lambda o: StepLR(o, 1)), 1, tmp_path)
    with pytest.raises(InputError) as caught:
        fit(made(lambda o: CosineAnnealingLR(o, 3), optimizer=lambda p: Adam(p, 0.01)), 2, tmp_path, resume=True)
    message = str(caught.value)
    assert "configuration.optimizer" in message
    assert "configuration.scheduler" in message
    assert "optimizer.lr" not in message
    assert "scheduler.step_size" not in message
