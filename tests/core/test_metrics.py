"""Metrics against values computed by hand, by counting pairs, and by trying every threshold."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.core.metrics import (
    METRICS,
    Metrics,
    calibration_error,
    detection_rate,
    formatted,
    higher_is_better,
    title,
)
from tgeokd.utils.errors import InputError

ALL = ("accuracy", "nll", "macro_f1", "macro_auc", "recall", "detection_rate", "calibration")


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def by_pairs(score: np.ndarray, positive: np.ndarray) -> float:
    """AUC by its definition: the share of pairs in the right order, ties counted half."""
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(score[positive], score[~positive])]
    return float(np.mean(wins))


def by_thresholds(score: np.ndarray, attack: np.ndarray, allowed: float) -> float:
    """Detection rate by its definition: the best of all thresholds, including one above all scores."""
    best = 0.0
    for threshold in [*score, np.inf]:
        flagged = score >= threshold
        if flagged[~attack].mean() <= allowed:
            best = max(best, flagged[attack].mean())
    return best


def case(seed: int, samples: int = 60, classes: int = 4, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    # few distinct values, so that scores tie
    logits = torch.randint(-4, 5, (samples, classes), generator=generator).to(dtype) / 2
    target = torch.randint(0, classes, (samples,), generator=generator)
    target[:classes] = torch.arange(classes)
    return logits, target


def test_three_classes_by_hand():
    logits = logits_of([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    target = torch.tensor([0, 1, 1, 2])
    result = Metrics(("accuracy", "nll", "macro_f1", "recall"), class_names=("a", "b", "c"))(logits, target)
    assert result["accuracy"] == 0.75
    assert result["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.3) + math.log(0.6)) / 4)
    # a: TP 1, FP 1; b: TP 1, FN 1; c: TP 1
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert [result[f"recall/{name}"] for name in "abc"] == [1.0, 0.5, 1.0]


def test_area_of_two_classes_by_hand():
    # scores of class 1: 0.9, 0.4, 0.4, 0.1 for labels 1, 1, 0, 0: three pairs right, one tied
    logits = logits_of([[0.1, 0.9], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])
    result = Metrics(("auc", "macro_auc"), primary="auc")(logits, torch.tensor([1, 1, 0, 0]))
    assert result == {"auc": pytest.approx(3.5 / 4), "macro_auc": pytest.approx(3.5 / 4)}


def test_detection_rate_by_hand():
    # 100 normal samples with scores 0 to 99: one may be flagged, so the threshold lies above 98
    normal = np.arange(100.0)
    attacks = np.array([200.0, 98.5, 98.0, 97.0])
    score, attack = np.concatenate([normal, attacks]), np.arange(104) >= 100
    assert detection_rate(score, attack) == 0.5
    assert detection_rate(score, attack, false_alarms=0.02) == 0.75
    assert detection_rate(score, attack, false_alarms=0.0) == 0.25
    # 99 normal samples: one would be more than 1 %
    assert detection_rate(score[1:], attack[1:]) == 0.25


def test_detection_rate_is_0_where_the_highest_scores_are_normal():
    assert detection_rate(np.array([3.0, 3.0, 3.0, 1.0]), np.array([False, False, True, True])) == 0


@given(seed=st.integers(0, 10**6), allowed=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_detection_rate_is_the_best_of_all_thresholds(seed, allowed):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 12, size=40).astype(float)
    attack = np.r_[True, False, generator.random(38) < 0.4]
    assert detection_rate(score, attack, allowed) == by_thresholds(score, attack, allowed)


@given(seed=st.integers(0, 10**6))
def test_areas_and_detection_rate_follow_their_definitions(seed):
    logits, target = case(seed)
    p, y = (
        logits.softmax(1).numpy().round(12),
        target.numpy(),
    )  # rounded: equal probabilities may differ in the last bit
    result = Metrics(("macro_auc", "detection_rate"), primary="macro_auc", attack_classes=(1, 3))(logits, target)
    assert result["macro_auc"] == pytest.approx(np.mean([by_pairs(p[:, c], y == c) for c in range(4)]))
    score = (p[:, 1] + p[:, 3]).round(10)
    assert result["detection_rate"] == pytest.approx(by_thresholds(score, np.isin(y, [1, 3]), 0.01))


def test_scores_are_ordered_where_probabilities_are_all_1():
    logits = torch.tensor([[0.0, 60.0], [0.0, 50.0], [0.0, 70.0]])  # each softmax is 1.0 in float64
    assert Metrics(("auc",), primary="auc")(logits, torch.tensor([0, 0, 1])) == {"auc": 1.0}


def test_calibration_by_hand():
    # two bins of two: mean confidence 0.2 with no event, 0.8 with one event of two
    confidence = np.array([0.9, 0.1, 0.7, 0.3])
    outcome = np.array([True, False, False, False])
    assert calibration_error(confidence, outcome, bins=2) == pytest.approx((0.2 + 0.3) / 2)
    # one confidence is one bin, whatever the order: 0.5 against one event of four
    assert calibration_error(np.full(4, 0.5), outcome) == pytest.approx(0.25)


def test_calibration_bins_are_of_equal_count():
    generator = np.random.default_rng(0)
    confidence = generator.random(1003)
    outcome = generator.random(1003) < confidence**2
    order = np.argsort(confidence)
    bins = np.split(order, [-(-i * 1003 // 15) for i in range(1, 15)])
    assert {len(rows) for rows in bins} == {66, 67}
    expected = sum(len(rows) * abs(confidence[rows].mean() - outcome[rows].mean()) for rows in bins) / 1003
    assert calibration_error(confidence, outcome) == pytest.approx(expected)


def test_calibration_uses_class_1_of_two_and_the_largest_of_more():
    binary = Metrics(("calibration",), primary="calibration")
    assert binary(logits_of([[0.8, 0.2]]), torch.tensor([0])) == {"calibration": pytest.approx(0.2)}
    assert binary(logits_of([[0.8, 0.2]]), torch.tensor([1])) == {"calibration": pytest.approx(0.8)}
    assert binary(logits_of([[0.7, 0.2, 0.1]]), torch.tensor([0])) == {"calibration": pytest.approx(0.3)}
    assert binary(logits_of([[0.7, 0.2, 0.1]]), torch.tensor([1])) == {"calibration": pytest.approx(0.7)}


@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
def test_order_of_samples_and_shift_of_logits_do_not_matter(seed, shift):
    metrics = Metrics(ALL, attack_classes=(0, 2))
    logits, target = case(seed)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    expected = metrics(logits, target)
    assert metrics(logits[order], target[order]) == pytest.approx(expected)
    assert metrics(logits + round(shift * 4) / 4, target) == pytest.approx(expected)


@given(seed=st.integers(0, 10**6))
def test_classes_may_be_renamed(seed):
    logits, target = case(seed)
    # no ties between the classes of a sample: argmax would take the first
    logits = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)).double()
    names, order = ("a", "b", "c", "d"), [2, 0, 3, 1]
    expected = Metrics(ALL, attack_classes=(0, 2), class_names=names)(logits, target)
    renamed = Metrics(ALL, attack_classes=(0, 1), class_names=tuple(names[i] for i in order))
    assert renamed(logits[:, order], torch.tensor(order).argsort()[target]) == pytest.approx(expected)


def test_scikit_learn_gives_the_same_values():
    from sklearn.metrics import log_loss, roc_auc_score

    _, target = case(3)
    logits = torch.randn(len(target), 4, generator=torch.Generator().manual_seed(3)).double()
    result = Metrics(("macro_auc", "nll"), primary="nll")(logits, target)
    p = logits.softmax(1).numpy()
    assert result["macro_auc"] == pytest.approx(roc_auc_score(target.numpy(), p, multi_class="ovr"))
    assert result["nll"] == pytest.approx(log_loss(target.numpy(), p))


def test_a_class_without_labels_is_left_out():
    logits, target = case(5)
    logits, target = logits[target != 2], target[target != 2]
    result = Metrics(("macro_f1", "macro_auc", "recall"), primary="macro_f1")(logits, target)
    assert sorted(key for key in result if key.startswith("recall")) == ["recall/0", "recall/1", "recall/3"]
    p, y, predicted = logits.softmax(1).numpy().round(12), target.numpy(), logits.argmax(1).numpy()
    assert result["macro_auc"] == pytest.approx(np.mean([by_pairs(p[:, c], y == c) for c in (0, 1, 3)]))
    both = [2 * ((y == c) & (predicted == c)).sum() / ((y == c).sum() + (predicted == c).sum()) for c in (0, 1, 3)]
    assert result["macro_f1"] == pytest.approx(np.mean(both))


def test_results_are_json_and_float64():
    logits, target = case(7, dtype=torch.bfloat16)
    result = Metrics(ALL, attack_classes=(1,))(logits, target)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == Metrics(ALL, attack_classes=(1,))(logits.double(), target)


def test_direction():
    lower = {name for name in METRICS if not higher_is_better(name)}
    assert lower == {"nll", "calibration"}
    assert higher_is_better("recall/normal")
    with pytest.raises(InputError, match=r"'acuracy'.*'accuracy'"):
        higher_is_better("acuracy")


@pytest.mark.parametrize(
    ("key", "heading", "text"),
    [
        ("accuracy", "accuracy, %", "98.76 ± 1.20"),
        ("recall/normal", "recall of normal, %", "98.76 ± 1.20"),
        ("nll", "NLL", "0.9876 ± 0.0120"),
    ],
)
def test_titles_and_digits(key, heading, text):
    assert title(key) == heading
    assert formatted(key, 0.98761, 0.012) == text
    assert formatted(key, 0.98761) == text.partition(" ")[0]
    assert formatted(key, None) == "-"


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"names": ("acuracy",)}, "'acuracy'.*'accuracy'"),
        ({"primary": "auc"}, "primary.*'auc'"),
        ({"names": ("recall",), "primary": "recall"}, "primary.*'recall'"),
        ({"choose_by": "auc"}, "choose.*'auc'"),
        ({"names": ("detection_rate",), "primary": "detection_rate"}, "attack_classes"),
    ],
)
def test_wrong_choices(options, given):
    with pytest.raises(InputError, match=given):
        Metrics(**options)


@pytest.mark.parametrize(
    ("names", "classes", "labels", "given"),
    [
        (("auc",), 3, [0, 1], "'auc'.* 3"),
        (("auc",), 2, [1, 1], "'auc'.*'bad'"),
        (("macro_auc",), 3, [0, 0], "'macro_auc'.*'good'"),
        (("detection_rate",), 2, [0, 0], r"'detection_rate'.*attack.*\(bad\)"),
        (("detection_rate",), 3, [1, 1], r"'detection_rate'.*normal.*\(good, 2\)"),
        (("detection_rate",), 1, [0, 0], "attack_classes.* 1$"),
        (("accuracy",), 2, [0, 2], "set to evaluate.* 2$"),
        (("accuracy",), 2, [], "empty"),
    ],
)
def test_undefined_metrics_are_refused_before_and_with_predictions(names, classes, labels, given):
    metrics = Metrics(names, primary=names[0], attack_classes=(1,), class_names=("good", "bad"))
    target = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(InputError, match=given):
        metrics.check(target, classes)
    with pytest.raises(InputError, match=given):
        metrics(torch.zeros(len(labels), classes), target)


@pytest.mark.parametrize(
    ("logits", "given"),
    [
        (torch.zeros(3, 2), r"\(3, 2\) for 2"),
        (torch.zeros(2), r"\(2,\) for 2"),
        (torch.tensor([[0.0, 1.0], [math.nan, math.inf]]), "1 of 2"),
    ],
)
def test_wrong_logits(logits, given):
    with pytest.raises(InputError, match=given):
        Metrics()(logits, torch.tensor([0, 1]))


def test_hyperparameters_are_chosen_by_the_primary_metric_by_default():
    assert Metrics().choose_by == "accuracy"
    assert Metrics(choose_by="nll").choose_by == "nll"
