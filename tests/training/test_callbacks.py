"""Early stopping and the progress bar on their own; test_schedules_and_callbacks.py has them in a training run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_training import refused
from torch import nn

from tgeokd.training.callbacks import Callback, EarlyStopping, ProgressBar


def distiller_of(model=None):
    return SimpleNamespace(student=model or nn.Linear(1, 1), should_stop=False, epochs=3, steps_per_epoch=2, step=0)


def run(stopping, losses, distiller=None, start=0):
    """Feed validation losses until it stops; the student's weight is the epoch. Returns the number of epochs."""
    distiller = distiller or distiller_of()
    for epoch, loss in enumerate(losses, start):
        with torch.no_grad():
            distiller.student.weight.fill_(float(epoch))
        stopping.on_epoch_end(distiller, {"epoch": epoch, "val_loss": loss})
        if distiller.should_stop:
            return epoch + 1
    return start + len(losses)


@pytest.mark.parametrize(
    ("losses", "patience", "stops_after", "best"),
    [
        ([3, 2, 1, 2, 2, 2], 2, 5, 2),
        ([3, 2, 1, 2, 2, 2], 3, 6, 2),
        ([1, 2, 3], 1, 2, 0),
        ([1, 1, 1, 1], 2, 3, 0),  # as good is not better
        ([5, 4, 3, 2, 1], 1, 5, 4),
        ([3, 4, 2, 4, 1, 4], 2, 6, 4),
        ([float("nan")] * 4, 2, 2, None),
    ],
)
def test_it_stops_after_patience_epochs_without_a_new_best_and_restores_it(losses, patience, stops_after, best):
    stopping, distiller = EarlyStopping(patience), distiller_of()
    assert run(stopping, losses, distiller) == stops_after
    stopping.on_fit_end(distiller)
    assert distiller.student.weight.item() == (stops_after - 1 if best is None else best)


def test_min_delta_is_the_smallest_decrease_that_counts():
    assert run(EarlyStopping(2, min_delta=0.5), [3.0, 2.6, 2.55, 0.0]) == 3
    assert run(EarlyStopping(2, min_delta=0.3), [3.0, 2.6, 2.55, 0.0]) == 4


def test_the_best_weights_are_a_copy():
    distiller, stopping = distiller_of(), EarlyStopping(5)
    run(stopping, [1.0], distiller)
    with torch.no_grad():
        distiller.student.weight.fill_(9.0)
    stopping.on_fit_end(distiller)
    assert distiller.student.weight.item() == 0.0


def test_its_state_is_restored():
    first = EarlyStopping(3)
    run(first, [1.0, 2.0])
    second, distiller = EarlyStopping(3), distiller_of()
    second.load_state_dict(first.state_dict())
    assert run(second, [2.0, 2.0, 2.0], distiller, start=2) == 4
    second.on_fit_end(distiller)
    assert distiller.student.weight.item() == 0.0
    assert second.best_loss == 1.0


def test_it_needs_a_validation_loss_and_a_patience():
    with refused("val_loader"):
        EarlyStopping(1).on_epoch_end(distiller_of(), {"epoch": 0})
    with refused("patience", 0):
        EarlyStopping(0)


def test_the_base_class_does_nothing():
    callback, distiller = Callback(), distiller_of()
    before = dict(vars(distiller))
    callback.on_fit_start(distiller)
    callback.on_step_end(distiller)
    callback.on_epoch_end(distiller, {})
    callback.on_fit_end(distiller)
    callback.on_exit(distiller)
    callback.load_state_dict(callback.state_dict())
    assert callback.state_dict() == {}
    assert vars(distiller) == before


@pytest.mark.parametrize("steps_per_epoch", [2, None])
def test_the_bar_shows_epochs_steps_and_numbers(capsys, steps_per_epoch):
    bar, distiller = ProgressBar(), distiller_of()
    distiller.steps_per_epoch = steps_per_epoch
    bar.on_fit_start(distiller)
    for epoch in range(3):
        for _ in range(2):
            distiller.step += 1
            bar.on_step_end(distiller)
        record = {"epoch": epoch, "train_loss": 0.5, "alpha_mean": 0.25, "val_accuracy": 0.875}
        bar.on_epoch_end(distiller, record if epoch else {"epoch": epoch, "train_loss": 1.0, "alpha_mean": None})
    bar.on_exit(distiller)
    shown = " ".join(capsys.readouterr().out.split())
    assert "epoch 3/3" in shown
    assert "loss 0.5000" in shown
    if steps_per_epoch:
        assert "6/6" in shown


def test_a_bar_that_never_started_can_be_stopped():
    ProgressBar().on_exit(distiller_of())
