"""`anl`: the schedule of the ratio form, and the two phases of the regression form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import AnnealingKD, Distiller, LossInputs
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError


def inputs_at(epoch, epochs, student=None, teacher=None):
    student = torch.zeros(2, 3) if student is None else student
    teacher = torch.zeros(2, 3) if teacher is None else teacher
    return LossInputs(student, teacher, torch.tensor([0, 2]), 4.0, epoch, epochs)


def schedule(epochs, **options):
    method = AnnealingKD(**options)
    rows = [method.alpha(inputs_at(epoch, epochs)).tolist() for epoch in range(epochs)]
    assert all(a == b for a, b in rows)  # the same for all samples
    return [row[0] for row in rows]


# ---- the ratio form


def test_eleven_epochs_take_one_level_each():
    assert schedule(11) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-6)


def test_110_epochs_take_ten_on_each_level():
    assert schedule(110) == pytest.approx([1 - (e // 10) / 10 for e in range(110)], abs=1e-6)


def test_seven_epochs_skip_levels():
    # the 7 epochs start at 0, 11/7, 22/7, ... of the 11 equal parts
    assert schedule(7) == pytest.approx([1.0, 0.9, 0.7, 0.6, 0.4, 0.3, 0.1], abs=1e-6)


@given(st.integers(1, 80), st.integers(1, 20))
def test_the_schedule_falls_from_one_to_zero(epochs, steps):
    levels = schedule(epochs, steps=steps)
    assert levels[0] == 1
    assert all(a >= b for a, b in itertools.pairwise(levels))
    assert min(levels) >= 0
    for level in levels:
        assert level * steps == pytest.approx(round(level * steps), abs=1e-5)
    if epochs >= steps + 1:
        assert levels[-1] == pytest.approx(0, abs=1e-6)
        lengths = [sum(math.isclose(v, k / steps, abs_tol=1e-6) for v in levels) for k in range(steps + 1)]
        assert max(lengths) - min(lengths) <= 1


def test_the_ratio_form_is_the_usual_fusion():
    student, teacher = torch.randn(2, 3), torch.randn(2, 3)
    inputs = inputs_at(3, 11, student, teacher)  # alpha = 0.7
    result = AnnealingKD().loss(inputs)
    torch.testing.assert_close(result.loss, 0.7 * inputs.kd + 0.3 * inputs.gt)
    torch.testing.assert_close(result.alpha, torch.tensor([0.7, 0.7]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "linear"}, "form.*'linear'"),
        ({"steps": 0}, "steps.*0"),
        ({"phase_one": 0.0}, "phase_one.*0.0"),
        ({"phase_one": 1.0}, "phase_one.*1.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AnnealingKD(**options)


# ---- the regression form


def test_first_phase_regresses_the_teachers_logits_with_a_rising_factor():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3), torch.randn(2, 3)
    method = AnnealingKD(form="regression")
    for epoch in range(10):  # of 15, so the first phase has 10 epochs and c = 1, ..., 10
        result = method.loss(inputs_at(epoch, 15, student, teacher))
        torch.testing.assert_close(result.loss, ((student - (epoch + 1) / 10 * teacher) ** 2).mean(dim=1))
        assert result.alpha.tolist() == [1.0, 1.0]
    for epoch in range(10, 15):
        result = method.loss(inputs_at(epoch, 15, student, teacher))
        torch.testing.assert_close(
            result.loss, nn.functional.cross_entropy(student, torch.tensor([0, 2]), reduction="none")
        )
        assert result.alpha.tolist() == [0.0, 0.0]


def test_each_factor_lasts_equally_long():
    # 30 epochs, half of them regression: 15 epochs for 5 factors, three each
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    method = AnnealingKD(form="regression", steps=5, phase_one=0.5)
    factors = [method.loss(inputs_at(e, 30, zero, one)).loss[0].sqrt().item() for e in range(15)]
    assert factors == pytest.approx([c / 5 for c in (1, 2, 3, 4, 5) for _ in range(3)])
    assert method.loss(inputs_at(15, 30, zero, one)).loss[0].item() == pytest.approx(math.log(3))


def test_best_weights_are_restored_at_the_switch_and_the_optimizer_state_is_cleared():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = AnnealingKD(form="regression", phase_one=0.5)
    for epoch, accuracy in enumerate([0.2, 0.6, 0.5, 0.6]):  # the first phase of 8; the first 0.6 is the best
        with torch.no_grad():
            model.weight.fill_(float(epoch))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            model.weight.fill_(float(epoch))
        assert optimizer.state
        method.after_epoch(epoch, 8, model, optimizer, {"accuracy": accuracy, "nll": 1.0})
        assert (model.weight == (1.0 if epoch == 3 else float(epoch))).all()
    assert not optimizer.state
    with torch.no_grad():
        model.weight.fill_(4.0)
    method.after_epoch(4, 8, model, optimizer, {"accuracy": 0.1, "nll": 1.0})  # nothing comes back in the second phase
    assert (model.weight == 4.0).all()


def test_without_validation_data_the_last_weights_go_on():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = AnnealingKD(form="regression", phase_one=0.5)
    for epoch in range(4):
        with torch.no_grad():
            model.weight.fill_(float(epoch))
        method.after_epoch(epoch, 8, model, optimizer, {})
    assert (model.weight == 3.0).all()


def test_the_state_survives_a_resume_in_the_first_phase():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        model.weight.fill_(7.0)
    method = AnnealingKD(form="regression", phase_one=0.5)
    method.after_epoch(0, 4, model, optimizer, {"accuracy": 0.9})
    resumed = AnnealingKD(form="regression", phase_one=0.5)
    resumed.load_state_dict(method.state_dict())
    with torch.no_grad():
        model.weight.fill_(8.0)
    resumed.after_epoch(1, 4, model, optimizer, {"accuracy": 0.8})
    assert (model.weight == 7.0).all()


class Snapshots(Callback):
    """The student's weights after the last step of each epoch, and as they are when the epoch is over."""

    def __init__(self):
        self.last_step, self.ends, self.state_sizes = [], [], []

    def on_step_end(self, distiller):
        self.latest = [p.detach().clone() for p in distiller.student.parameters()]

    def on_epoch_end(self, distiller, record):
        self.last_step.append(self.latest)
        self.ends.append([p.detach().clone() for p in distiller.student.parameters()])
        self.state_sizes.append(len(distiller.optimizer.state))


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(36, 4, generator=generator)
    y = torch.arange(36) % 3
    torch.manual_seed(0)
    return DataLoader(TensorDataset(x[:24], y[:24]), 8, shuffle=True), DataLoader(TensorDataset(x[24:], y[24:]), 12)


def distiller_of(method, *callbacks, seed=0):
    torch.manual_seed(seed)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(student.parameters(), 0.3, momentum=0.9)
    return Distiller(student, teacher, method, optimizer, callbacks=callbacks, accelerator="cpu", progress=False)


def test_in_training_the_second_phase_starts_from_the_best_of_the_first():
    seen_before_last = False
    for seed in range(4):
        snapshots = Snapshots()
        distiller = distiller_of(AnnealingKD(form="regression"), snapshots, seed=seed)
        history = distiller.fit(*problem(), epochs=9)
        accuracy = history["val_accuracy"][:6]
        best = accuracy.index(max(accuracy))
        seen_before_last |= best < 5
        for ended, kept in zip(snapshots.ends[5], snapshots.last_step[best], strict=True):
            assert torch.equal(ended, kept)
        assert snapshots.state_sizes == [2, 2, 2, 2, 2, 0, 2, 2, 2]
        assert [record["alpha_mean"] for record in history] == [1.0] * 6 + [0.0] * 3
    assert seen_before_last  # otherwise nothing would have been put back


def test_ratios_after_training_are_those_of_the_last_epoch():
    distiller = distiller_of(AnnealingKD())
    train, validation = problem()
    distiller.fit(train, epochs=11)
    assert distiller.fusion_ratios(validation).tolist() == pytest.approx([0.0] * 12, abs=1e-6)


def test_a_method_can_be_used_for_a_second_fit():
    distiller = distiller_of(AnnealingKD(form="regression"))
    train, _ = problem()
    distiller.fit(train, epochs=3)
    distiller.fit(train, epochs=3)
