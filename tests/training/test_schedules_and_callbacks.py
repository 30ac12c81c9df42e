"""Learning-rate schedulers, early stopping and callbacks in a training run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import (
    Recorder,
    assert_same,
    differ,
    distiller_of,
    is_clean,
    loader,
    mlp,
    refused,
    validation_loader,
    weights,
)
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from tgeokd import TGeoKD
from tgeokd.training.callbacks import Callback, EarlyStopping


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


def test_plateau_monitors_the_validation_loss():
    def plateau(optimizer):
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=0)

    # a rate that is too large, so that the loss goes up and down
    history = distiller_of(lr=2.0, scheduler=plateau).fit(loader(), validation_loader(), epochs=8)
    replayed = SGD([nn.Parameter(torch.zeros(1))], 2.0)
    scheduler = plateau(replayed)
    expected = []
    for loss in history["val_loss"]:
        expected.append(replayed.param_groups[0]["lr"])
        scheduler.step(loss)
    assert history["lr"] == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_plateau_by_step_is_refused_before_training():
    recorder = Recorder()
    with refused("ReduceLROnPlateau", "scheduler_every"):
        distiller_of(scheduler=ReduceLROnPlateau, scheduler_every="step", callbacks=[recorder]).fit(
            loader(), validation_loader(), epochs=1
        )
    assert recorder.log == []


@pytest.mark.parametrize("options", [{"scheduler": ReduceLROnPlateau}, {"patience": 1}])
def test_what_needs_a_validation_loss_is_refused_before_training(options):
    recorder = Recorder()
    patience = options.get("patience")
    distiller = distiller_of(scheduler=options.get("scheduler"), callbacks=[recorder])
    with refused("val_loader"):
        distiller.fit(loader(), epochs=1, patience=patience)
    assert recorder.log == []


@pytest.mark.parametrize("options", [{"patience": 2}, {"scheduler": lambda o: ReduceLROnPlateau(o)}])
def test_what_monitors_the_validation_loss_is_refused_where_the_student_trains_on_that_set(tmp_path, options):
    patience = options.pop("patience", None)
    distiller = distiller_of(TGeoKD(outer="holdout"), **options)
    assert len(distiller.fit(loader(), validation_loader(), epochs=1, patience=patience)) == 1
    with refused("outer='union'", "tgeo", "outer='holdout'"):
        distiller_of(TGeoKD(), **options).fit(
            loader(), validation_loader(), epochs=1, patience=patience, out=tmp_path / "run"
        )
    assert is_clean(tmp_path / "run")


# ---- early stopping


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


# ---- callbacks


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
    distiller_of(progress=True).fit(loader(), validation_loader(), epochs=2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "epoch 2/2" in shown
    assert "6/6" in shown
    assert "validation" in shown
    assert "loss" in shown


def test_early_stopping_forgets_an_earlier_run():
    stopping = EarlyStopping(patience=5)
    student = mlp(1)
    distiller = distiller_of(student=student, callbacks=[stopping])
    distiller.fit(loader(), validation_loader(), epochs=4)
    with torch.no_grad():
        for param in student.parameters():
            param.mul_(-3.0)  # far from where the first run ended
    history = distiller.fit(loader(), validation_loader(), epochs=1)
    assert stopping.best_epoch == 0
    assert stopping.best_loss == history["val_loss"][0]
    assert distiller.evaluate(validation_loader())["nll"] == pytest.approx(history["val_loss"][0])
