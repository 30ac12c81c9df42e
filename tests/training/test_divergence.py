"""What ``on_divergence`` does with steps whose loss or gradient is not finite."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from resumed_runs import (
    EPOCHS,
    STEPS,
    At,
    CutOff,
    assert_same_end,
    distiller_of,
    fit,
    save_and_crash,
    train_loader,
    validation_loader,
)
from small_training import refused
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from tgeokd.training.callbacks import Callback
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.training.divergence import MAX_ROLLBACKS, MAX_SKIPPED
from tgeokd.utils.errors import DivergenceError, InputError


class Poison(Callback):
    """Makes the student's bias infinite for one step, after some steps (counted by batches, from 0)."""

    def __init__(self, *batches):
        self.batches = batches

    def on_fit_start(self, distiller):
        self.seen, student = 0, distiller.student
        if not hasattr(self, "hooked"):
            self.hooked = student.register_forward_pre_hook(self.before)

    def before(self, student, inputs):
        if student.training:
            self.seen += 1
            if self.seen - 1 in self.batches:
                return (inputs[0] * float("inf"),)
        return None


class Spike(Callback):
    """Multiplies the parameters by 1e30 after one step, unless the rate is below a bound."""

    def __init__(self, step, below=0.0):
        self.step, self.below = step, below

    def on_step_end(self, distiller):
        if distiller.step == self.step and distiller.optimizer.param_groups[0]["lr"] > self.below:
            with torch.no_grad():
                for parameter in distiller.student.parameters():
                    parameter.mul_(float("inf"))


def test_a_skipped_step_leaves_no_trace_but_its_count(tmp_path, caplog):
    distiller = distiller_of("kd", Poison(4), on_divergence="skip")
    fit(distiller, out=tmp_path)
    assert distiller.step == EPOCHS * STEPS - 1
    assert all(bool(value.isfinite().all()) for value in distiller.student.state_dict().values())
    assert [record["epoch"] for record in distiller.history] == [*range(EPOCHS)]
    assert len([m for m in caplog.messages if "skipped" in m]) == 1
    assert Checkpointer(tmp_path).load().divergence == [1, 0]


@pytest.mark.parametrize("method", ["tgeo", "rw", "mwnet"])
def test_bilevel_methods_go_on_after_a_skipped_step(method):
    distiller = distiller_of(method, Poison(4, 5, 9), on_divergence="skip")
    fit(distiller)
    assert distiller.history[-1]["train_loss"] < 10
    assert all(bool(value.isfinite().all()) for value in distiller.student.state_dict().values())


def test_a_gradient_that_is_not_finite_is_skipped_too():
    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    class Head(nn.Module):
        calls = 0

        def forward(self, x):
            Head.calls += self.training
            return Exploding.apply(x) if Head.calls == 5 and self.training else x

    distiller = distiller_of("kd", on_divergence="skip")
    distiller.student.append(Head())
    fit(distiller)
    assert distiller.step == EPOCHS * STEPS - 1
    assert all(bool(value.isfinite().all()) for value in distiller.student.state_dict().values())


def test_skipping_has_a_limit(tmp_path):
    distiller = distiller_of("kd", Poison(*range(2, 200, 2)), on_divergence="skip")
    with pytest.raises(DivergenceError, match=str(MAX_SKIPPED)):
        fit(distiller, epochs=50, out=tmp_path)


def test_a_run_with_a_skipped_step_is_resumed_exactly(tmp_path):
    def make(*callbacks):
        return distiller_of("kd", callbacks=callbacks, on_divergence="skip")

    with pytest.raises(CutOff):
        fit(make(Poison(1), At(STEPS + 1, save_and_crash)), out=tmp_path)
    resumed, whole = make(), make(Poison(1))
    fit(resumed, out=tmp_path, resume=True)
    fit(whole)
    assert_same_end(resumed, whole)


def test_a_rollback_returns_to_the_checkpoint_with_half_the_rate(tmp_path, caplog):
    """The second try passes because the rate is lower."""
    callback = Spike(2 * STEPS + 1, below=0.06)
    distiller = distiller_of("kd", callback, on_divergence="rollback", lr=0.1)
    fit(distiller, out=tmp_path)
    assert distiller.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert distiller.history["lr"] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05])
    assert [record["epoch"] for record in distiller.history] == [*range(EPOCHS)]
    assert distiller.step == EPOCHS * STEPS
    assert Checkpointer(tmp_path).load().divergence == [0, 1]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [*range(EPOCHS)]


def test_two_rollbacks_to_the_same_checkpoint_quarter_the_rate_and_the_schedule(tmp_path):
    def scheduler(optimizer):
        return CosineAnnealingLR(optimizer, 50)

    callback = Spike(2 * STEPS + 1, below=0.03)
    distiller = distiller_of("kd", callback, on_divergence="rollback", lr=0.1, scheduler=scheduler)
    plain = distiller_of("kd", lr=0.1, scheduler=scheduler)
    fit(distiller, out=tmp_path)
    fit(plain)
    expected = [rate * factor for rate, factor in zip(plain.history["lr"], (1, 1, 0.25, 0.25, 0.25), strict=True)]
    assert distiller.history["lr"] == pytest.approx(expected)


def test_rollbacks_have_a_limit_and_the_last_checkpoint_is_good(tmp_path, caplog):
    distiller = distiller_of("kd", Spike(2 * STEPS + 1), on_divergence="rollback")
    with caplog.at_level(logging.WARNING, "tgeokd"), pytest.raises(DivergenceError, match=str(MAX_ROLLBACKS)):
        fit(distiller, out=tmp_path)
    state = Checkpointer(tmp_path).load()
    assert state.epoch == 2
    assert all(bool(value.isfinite().all()) for value in state.student.values())


def test_a_diverged_student_is_never_saved(tmp_path):
    with pytest.raises(DivergenceError):
        fit(distiller_of("kd", Spike(3 * STEPS)), out=tmp_path, keep_checkpoints=1)
    assert Checkpointer(tmp_path).load().epoch == 2
    resumed, whole = distiller_of("kd"), distiller_of("kd")
    fit(resumed, out=tmp_path, resume=True)
    fit(whole)
    assert_same_end(resumed, whole)


def test_a_run_that_diverges_in_its_first_epoch_leaves_the_folder_free(tmp_path):
    with pytest.raises(DivergenceError):
        fit(distiller_of("kd", Poison(1)), out=tmp_path)
    fit(distiller_of("kd"), out=tmp_path)


def test_what_cannot_be_done_is_refused():
    with refused("explode", "rollback"):
        distiller_of("kd", on_divergence="explode")
    with refused("out="):
        distiller_of("kd", on_divergence="rollback").fit(train_loader(), validation_loader(), epochs=1)


def test_bad_inputs_are_not_skipped():
    bad = [(torch.full((2, 4), float("nan")), torch.tensor([0, 1]))]
    with pytest.raises(InputError):
        distiller_of("ce", on_divergence="skip").fit([*train_loader(), *bad], validation_loader(), epochs=1)
