"""Metrics of a set that is read batch by batch: against the set at once, scikit-learn, and a bound on memory."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tgeokd.core.metrics import METRICS, Metric, Metrics, areas, base, running
from tgeokd.core.metrics.accumulator import ExactSum
from tgeokd.core.metrics.base import log_odds_of_each
from tgeokd.utils.errors import InputError

ALL = ("accuracy", "nll", "macro_f1", "macro_auc", "recall", "detection_rate", "calibration")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def case(seed: int, samples: int = 40, classes: int = 4, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator)
    target = torch.randint(0, classes, (samples,), generator=generator)
    target[:2] = torch.arange(2)
    return logits.to(dtype), target


def streamed(metrics: Metrics, logits, target, sizes, chunk: int = running.CHUNK):
    with mock.patch.object(running, "CHUNK", chunk):
        found = metrics.accumulator()
        start = 0
        for size in [*sizes, len(target)]:
            found.update(logits[start : start + size], target[start : start + size])
            start += size
        return found.compute()


def by_scikit_learn(logits, target, attacks):
    """The same metrics by another library, from probabilities."""
    p, y = logits.double().softmax(1).numpy(), target.numpy()
    present, predicted = np.unique(y), logits.double().numpy().argmax(1)
    flagged, confidence = np.isin(y, attacks), p.max(1) if p.shape[1] > 2 else p[:, 1]
    fpr, tpr, _ = sk.roc_curve(flagged, p[:, list(attacks)].sum(1), drop_intermediate=False)
    outcome = predicted == y if p.shape[1] > 2 else y == 1
    bins = np.array_split(np.argsort(confidence), 15)
    found = {
        "accuracy": sk.accuracy_score(y, predicted),
        "nll": sk.log_loss(y, p, labels=range(p.shape[1])),
        "macro_f1": sk.f1_score(y, predicted, labels=present, average="macro"),
        "macro_auc": np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in present]),
        "detection_rate": tpr[fpr <= 0.01].max(),
        "calibration": sum(abs((confidence - outcome)[rows].sum()) for rows in bins) / len(y),
    }
    recalls = sk.recall_score(y, predicted, labels=present, average=None)
    return found | {f"recall/{c}": value for c, value in zip(present, recalls, strict=True)}


splits = st.lists(st.integers(0, 20), max_size=6)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 6),
    dtype=st.sampled_from(DTYPES),
    sizes=splits,
    chunk=st.sampled_from([1, 7, 30, 2**17]),
)
def test_any_split_gives_the_values_of_the_set_at_once_and_of_scikit_learn(seed, classes, dtype, sizes, chunk):
    # 45 samples: 15 bins of 3
    logits, target = case(seed, 45, classes, dtype)
    metrics = Metrics((*ALL, "auc") if classes == 2 else ALL, attack_classes=(1,))
    expected = metrics(logits, target)
    found = streamed(metrics, logits, target, sizes, chunk)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)
    if dtype != torch.bfloat16:  # whose logits tie: then bins and argmax are defined otherwise
        truth = by_scikit_learn(logits, target, (1,))
        truth |= {"auc": truth["macro_auc"]} if classes == 2 else {}
        assert found == pytest.approx(truth, rel=1e-9, abs=1e-12)


def test_every_built_in_metric_is_streamed():
    metrics = Metrics((*ALL, "auc"), attack_classes=(1,))
    assert not any(isinstance(each, base._AllLogits) for each in metrics.accumulators(2).values())
    assert set(METRICS) == set(metrics.names)


# ---- sums


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(0, 1e18), min_size=1, max_size=40), sizes=splits)
def test_sums_are_those_of_exact_arithmetic(values, sizes):
    total = ExactSum()
    for value in values:
        total.add(torch.tensor(value, dtype=torch.float64))
    assert float(total) == pytest.approx(math.fsum(values), rel=1e-15)


def test_a_small_loss_is_not_lost_beside_a_large_sum():
    # 1e16 + 1 is 1e16 in float64
    logits = torch.tensor([[0.0, 1e16], *[[0.0, -math.log(math.e - 1)]] * 1000], dtype=torch.float64)
    target = torch.zeros(1001, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
    found = streamed(Metrics(("nll",), "nll"), logits, target, [1] * 1000, chunk=1)["nll"]
    assert found == math.fsum(losses) / 1001
    assert found != 1e16 / 1001


# ---- areas


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), scale=st.floats(0.01, 100))
def test_log_odds_of_each_class_follow_their_definition(seed, classes, scale):
    logits = scale * case(seed, 20, classes)[0]
    for c in range(classes):
        others = logits[:, [k for k in range(classes) if k != c]].logsumexp(1)
        torch.testing.assert_close(log_odds_of_each(logits)[:, c], logits[:, c] - others, rtol=1e-12, atol=2e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 5]), sizes=splits)
def test_more_scores_than_are_kept_give_areas_within_the_bound_that_is_said(seed, classes, sizes):
    logits, target = case(seed, 300, classes)
    logits[torch.arange(300), target] += 2.0
    name = "auc" if classes == 2 else "macro_auc"
    metrics = Metrics((name,), name)
    exact = metrics(logits, target)[name]
    said = []
    with mock.patch.object(areas, "EXACT", 160), mock.patch.object(areas, "_say", lambda *args: said.append(args)):
        found, again = (streamed(metrics, logits, target, cut, chunk=8)[name] for cut in (sizes, [150]))
    assert found == again  # counts do not depend on the order
    assert abs(found - exact) <= said[0][-1] * 1.1 + 1e-12  # it is rounded to one digit
    assert said[0][:3] == (name, 300, 1 if classes == 2 else 5)


def test_histograms_of_some_hundred_bins_are_close():
    logits, target = case(1, 4000, 3)
    logits[torch.arange(4000), target] += 1.0
    metrics = Metrics(("macro_auc",), "macro_auc")
    exact = metrics(logits, target)["macro_auc"]
    with mock.patch.object(areas, "EXACT", 10_000):
        assert metrics(logits, target)["macro_auc"] == pytest.approx(exact, abs=3e-5)


def test_what_is_not_exact_is_said_once(caplog):
    logits, target = case(2, 77)
    with mock.patch.object(areas, "EXACT", 100), caplog.at_level(logging.WARNING, "tgeokd"):
        for _ in range(3):
            Metrics(("macro_auc",), "macro_auc")(logits, target)
    assert len([line for line in caplog.messages if "macro_auc" in line and "308" in line]) == 1


# ---- metrics of other packages


class Largest(Metric):
    """Needs all logits at once: which sample has the largest one."""

    name, title = "largest", "largest"

    def compute(self, logits, target, settings):
        assert logits.dtype == torch.float64
        return float(logits.max(dim=1).values.argmax())


def test_a_metric_with_compute_alone_is_given_all_logits(monkeypatch):
    monkeypatch.setitem(METRICS._entries, "largest", Largest)
    logits, target = case(3)
    metrics = Metrics(("accuracy", "largest"))
    expected = {"accuracy": metrics(logits, target)["accuracy"], "largest": float(logits.max(1).values.argmax())}
    assert streamed(metrics, logits, target, [7, 0, 9], chunk=20) == expected


def test_a_subclass_that_overrides_compute_is_computed_by_it(monkeypatch):
    class Percent(METRICS["accuracy"]):
        def compute(self, logits, target, settings):
            return 100 * super().compute(logits, target, settings)

    monkeypatch.setitem(METRICS._entries, "percent", Percent)
    logits, target = case(4)
    found = streamed(Metrics(("accuracy", "percent")), logits, target, [7, 9])
    assert found["percent"] == 100 * found["accuracy"] > 0


# ---- faults


@settings(deadline=None, max_examples=30)
@given(sizes=splits, chunk=st.sampled_from([1, 9, 2**17]), row=st.integers(0, 38), bad=st.sampled_from(["nan", "inf"]))
def test_bad_logits_are_counted_and_found_in_any_split(sizes, chunk, row, bad):
    logits, target = case(5)
    logits[row, 1] = logits[row + 1, 3] = -float(bad)
    with pytest.raises(InputError, match="2 of 40"):
        streamed(Metrics(ALL, attack_classes=(1,)), logits, target, sizes, chunk)
    found = Metrics().accumulator()
    found.update(logits[:1], target[:1])
    found.update(logits[1:], target[1:])
    assert found.first_bad_row() == row


@pytest.mark.parametrize("label", [-1, 4, 10**12])
@pytest.mark.parametrize("row", [0, 39])
def test_a_label_out_of_range_is_found_in_any_split(label, row):
    logits, target = case(6)
    target[row] = label
    for chunk in (1, 2**17):
        with pytest.raises(InputError, match=f" {label}$"):
            streamed(Metrics(ALL, attack_classes=(1,)), logits, target, [10, 10], chunk)


def test_batches_of_other_classes_and_no_batches_are_refused():
    found = Metrics().accumulator()
    with pytest.raises(InputError, match="empty"):
        found.compute()
    found.update(*case(7))
    with pytest.raises(InputError, match="4 so far, now 3"):
        found.update(*case(7, classes=3))


def test_what_was_refused_stays_refused():
    found = Metrics(("auc",), "auc").accumulator()
    for _ in range(2):
        with pytest.raises(InputError, match="macro_auc"):
            found.update(*case(8, classes=3))


def test_a_batch_may_be_changed_after_it_was_added():
    logits, target = case(9)
    expected = Metrics(ALL, attack_classes=(1,))(logits, target)
    for chunk in (1, 2**17):
        with mock.patch.object(running, "CHUNK", chunk):
            found = Metrics(ALL, attack_classes=(1,)).accumulator()
            for z, y in zip(logits.split(11), target.split(11), strict=True):
                z, y = z.clone(), y.clone()
                found.update(z, y)
                z.zero_(), y.zero_()
            assert found.compute() == pytest.approx(expected, rel=1e-12)


def test_values_may_be_computed_in_between():
    logits, target = case(10)
    metrics = Metrics(ALL, attack_classes=(1,))
    found = metrics.accumulator()
    for end in (15, 40):
        found.update(logits[found.samples : end], target[found.samples : end])
        assert found.compute() == pytest.approx(metrics(logits[:end], target[:end]), rel=1e-12)


# ---- memory

PROGRAM = """
import json, sys, torch
from tgeokd.core.metrics import Metrics
from tgeokd.utils.memory import PeakMemory

classes, samples, batch = 100_000, 5_000, 25
metrics = Metrics(("accuracy", "nll", "macro_f1", "recall", "calibration"))

def evaluate(samples):
    found = metrics.accumulator()
    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0))
    with PeakMemory() as peak:
        for start in range(0, samples, batch):
            found.update(logits, (torch.arange(start, start + batch) * 7) % classes)
        values = found.compute()
    return peak.resident_mib if peak.exact else None, values["accuracy"]

evaluate(50)
print(json.dumps([evaluate(500), evaluate(samples)]))
"""


@pytest.mark.process
@pytest.mark.slow
def test_memory_does_not_grow_with_samples_times_classes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (few, _), (many, accuracy) = json.loads(done.stdout)
    assert 0 <= accuracy < 0.01
    if few is None:
        pytest.skip("this kernel has no high-water mark to set back")
    assert many < few + 40  # 4,500 samples more are 1.8 GB of logits in float32
