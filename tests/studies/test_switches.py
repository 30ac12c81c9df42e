"""Every row of the study trains, and its switches do what they are named after."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import report
import torch
import torch.nn.functional as F
from diagnosis import Diagnosed
from estimators import ESTIMATORS
from rows import CAUSES, ROWS
from small_training import ratio_alone
from switches import EqualNorms, Variant, with_mean
from tasks import TASKS
from torch import nn
from training import build, run_all

from tgeokd import DistillationStep, LossInputs
from tgeokd.bilevel import Estimator, OuterDirection
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.core.losses import kd_loss
from tgeokd.data.arrays import ArrayDataset
from tgeokd.runs.config import preset
from tgeokd.teachers.network import as_teacher

CLASSES, BATCH = 3, 8


class Setup:
    """Two batches of ten inputs, and student and teacher for them, the same every time."""

    def __init__(self, steps: int = 2) -> None:
        torch.manual_seed(0)
        target = torch.arange(steps * BATCH) % CLASSES
        train = ArrayDataset(torch.randn(len(target), 10), target, torch.arange(len(target)))
        val = ArrayDataset(torch.randn(12, 10), torch.tensor([0] * 7 + [1] * 3 + [2] * 2))
        self.train, self.val = (torch.utils.data.DataLoader(data, BATCH) for data in (train, val))
        self.teacher = nn.Linear(10, CLASSES)
        self.student = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, CLASSES))
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.1, momentum=0.9)

    def run(self, method):
        """Train for one epoch; returns the losses."""
        step = DistillationStep(self.student, self.optimizer, method, validation=self.val, temperature=2.0)
        step.prepare(self.train, self.teacher)
        step.start_epoch(0, 1)
        losses = []
        for batch in self.train:
            loss = step.loss(batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses


@pytest.mark.parametrize("label", ROWS)
def test_a_row_trains(label):
    row = ROWS[label]
    setup = Setup(steps=2 + 4 * row.options.get("delay", 0))
    method = build(row)
    method.wrong_ids = torch.tensor([0, 9])
    if row.options.get("estimator") == "with_teacher":
        method.estimator.teacher = as_teacher(setup.teacher)
    assert all(map(math.isfinite, setup.run(method)))
    if isinstance(method, Diagnosed):
        found = method.diagnosis()
        assert 0 <= found["alpha"][0] <= 1
        assert 0 <= found["auc_wrong"] <= 1
    if isinstance(method, Variant):
        assert method.network.omega.isfinite().all()
        assert bool(method.network.layers[-1][0].any())  # it starts at zero, so omega has learned


def test_without_switches_the_variant_is_the_package_method():
    options = {"update_interval": 1, "lr": 0.03}
    found = []
    for method in (ratio_alone(**options), Variant(**options)):
        torch.manual_seed(1)
        setup = Setup()
        torch.manual_seed(1)
        found.append((setup.run(method), method.network.omega.tolist()))
    assert found[0] == found[1]


class Keeping(LastLayerEstimator):
    """Keeps its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def estimate(self, record, outer_batch):
        self.calls.append((record, outer_batch))
        return super().estimate(record, outer_batch)


@pytest.fixture(scope="module")
def recorded():
    """The recorded steps of a short training, the estimator and the set-up."""
    setup, estimator = Setup(steps=4), Keeping()
    setup.run(ratio_alone(hypergradient=estimator, update_interval=1))
    return setup, estimator


def of_head(name: str, recorded, **options) -> Estimator:
    estimator = ESTIMATORS[name](**options)
    estimator.head = recorded[1].head
    return estimator


def copied(record):
    return replace(record, microbatches=list(record.microbatches))


def test_centred_has_mean_zero_and_keeps_the_differences(recorded):
    record, outer = recorded[1].calls[0]
    plain = LastLayerEstimator.estimate(recorded[1], record, outer)
    centred = of_head("centred", recorded).estimate(record, outer)
    torch.testing.assert_close(centred, plain - plain.mean())


def test_delayed_judges_an_earlier_step_by_a_later_validation_batch(recorded):
    calls = recorded[1].calls
    delayed = of_head("delayed", recorded, delay=2)
    found = [delayed.estimate(*call) for call in calls]
    assert not torch.stack(found[:2]).any()
    for i in (2, 3):
        assert torch.equal(found[i], LastLayerEstimator.estimate(recorded[1], calls[i - 2][0], calls[i][1]))
    with pytest.raises(ValueError, match="project_out_step_length"):
        of_head("delayed", recorded, delay=2, direction=OuterDirection(project_out_step_length=True))


@pytest.mark.parametrize("name", ["equal_norms", "unit_norms"])
def test_a_changed_difference_is_the_one_of_changed_gradients(name, recorded):
    record, outer = recorded[1].calls[0]
    plain = LastLayerEstimator.estimate(recorded[1], record, outer)
    estimator = of_head(name, recorded)
    if name == "equal_norms":
        torch.testing.assert_close(estimator.estimate(copied(record), outer), plain)
        estimator.kd_scale = 0.0  # then the result is minus the part of gt
        minus_gt = estimator.estimate(copied(record), outer)
        estimator.kd_scale = 2.0
        torch.testing.assert_close(estimator.estimate(copied(record), outer), 2 * plain - minus_gt)
    else:
        kd, gt = torch.randn(2, BATCH, CLASSES).unbind()
        expected = kd / kd.norm(dim=-1, keepdim=True) - gt / gt.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(estimator.difference(kd, gt), expected)
        assert not torch.equal(estimator.estimate(copied(record), outer), plain)


def smoothed(logits, target, _):
    return F.cross_entropy(logits, target, label_smoothing=0.1)


def balanced(logits, target, _):
    return F.cross_entropy(logits, target, weight=1.0 / target.bincount(minlength=CLASSES).to(logits.dtype))


def margin(logits, target, _):
    own = logits.gather(-1, target[:, None]).squeeze(-1)
    others = logits.masked_fill(F.one_hot(target, CLASSES).bool(), -math.inf).amax(-1)
    return (1 - own + others).clamp_min(0).mean()


def with_teacher(logits, target, teacher_logits):
    return 0.5 * F.cross_entropy(logits, target) + 0.5 * kd_loss(logits, teacher_logits, 2.0).mean()


@pytest.mark.parametrize("loss", [smoothed, balanced, margin, with_teacher], ids=lambda loss: loss.__name__)
def test_the_residual_is_the_gradient_of_the_validation_loss(loss):
    torch.manual_seed(0)
    logits = torch.randn(9, CLASSES, dtype=torch.float64, requires_grad=True)
    teacher_logits = torch.randn(9, CLASSES, dtype=torch.float64)
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    estimator = ESTIMATORS[loss.__name__]()
    estimator.teacher_logits, estimator.temperature = teacher_logits, 2.0
    (expected,) = torch.autograd.grad(loss(logits, target, teacher_logits), logits)
    torch.testing.assert_close(estimator.outer_residual(logits.detach(), target) / 9, expected)


def test_equal_norms_scales_the_teacher_term():
    setup = Setup()
    method = EqualNorms(project_out_step_length=False)
    setup.run(method)
    x, target, ids = next(iter(setup.train))
    inputs = LossInputs(setup.student(x), setup.teacher(x).detach(), target, 2.0, ids=ids)
    by_sample = [
        torch.autograd.grad(term.sum(), inputs.student_logits, retain_graph=True)[0].norm(dim=-1).mean()
        for term in (inputs.kd, inputs.gt)
    ]
    before = inputs.kd
    method.loss(inputs)
    torch.testing.assert_close(inputs.kd, before * by_sample[1] / by_sample[0])


def test_kept_mean_and_its_derivative():
    raw = torch.randn(7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(with_mean(raw, 0.3).mean(), torch.tensor(0.3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda r: with_mean(r, 0.3), raw)


def test_the_study_runs_collects_and_reports(tmp_path, monkeypatch, capsys):
    config = preset("digits")
    short = {
        "student": {**config.student.model_dump(), "epochs": 1},
        "teacher": {**config.teacher.model_dump(), "epochs": 1},
    }
    monkeypatch.setattr("tasks.preset", lambda name: type(config)(**{**config.to_dict(), **short}))
    rows = {label: ROWS[label] for label in ("default", "kd .5", "known wrong .3/1")}
    for _ in range(2):  # the second call finds the files
        run_all(rows, ["digits30"], [100], tmp_path, None, 1)
    assert len(list((tmp_path / "digits30").glob("*.json"))) == 3
    assert "digits30" in capsys.readouterr().out
    report.collect(tmp_path, ["digits30"], rows, tmp_path / "found.json")
    found = report.read(tmp_path / "found.json")["digits30"]
    assert set(found) == set(rows)
    assert found["known wrong .3/1"]["100"]["alpha_wrong"] == 1.0
    assert found["kd .5"]["100"]["alpha"] == 0.5


def test_the_stored_results_are_of_the_rows(tmp_path):
    stored = report.read(Path(report.__file__).with_name("causes.json"))
    assert all(set(rows) <= set(ROWS) for rows in stored.values())
    assert set(stored) <= set(TASKS)
    assert report.tables(CAUSES, stored).count("\n| default |") == len(CAUSES)
    report.figure(CAUSES[:1], stored, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size
    assert json.loads(Path(report.__file__).with_name("images.json").read_text())
