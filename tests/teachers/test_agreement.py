"""Comparing a teacher with the labels: what is absurd is found, and weak teachers and wrong labels are no false alarms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from tgeokd.teachers.agreement import MOST_CLASSES, better_order, better_shift, lowest_classes, measure


def labels(n, classes, seed, rare=None):
    generator = torch.Generator().manual_seed(seed)
    if rare is not None:
        return (torch.rand(n, generator=generator) < rare).long()
    return torch.randint(0, classes, (n,), generator=generator)


def guesses(target, classes, accuracy, seed):
    """Predictions with an accuracy, wrong ones of any other class."""
    generator = torch.Generator().manual_seed(seed + 1000)
    wrong = (target + torch.randint(1, classes, target.shape, generator=generator)) % classes
    return torch.where(torch.rand(len(target), generator=generator) < accuracy, target, wrong)


def in_rows(predicted, target):
    rows = torch.arange(len(target))
    return better_shift(rows, predicted, rows, target)


def is_absurd(predicted, target, classes):
    found = better_order(predicted, target, classes), in_rows(predicted, target)
    return any(each is not None for each in found) or measure(predicted, target, classes).nothing_in_common


SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.integers(2, 12), st.integers(1, 300))
def test_shares(seed, classes, n):
    target = labels(n, classes, seed)
    predicted = guesses(target, classes, 0.6, seed)
    agreement = measure(predicted, target, classes)
    assert agreement.share == pytest.approx(accuracy_score(target, predicted))
    assert agreement.samples == n
    assert agreement.largest == pytest.approx(max(float((target == c).double().mean()) for c in range(classes)))
    shares = [(float((target == c).double().mean()), float((predicted == c).double().mean())) for c in range(classes)]
    assert agreement.chance == pytest.approx(sum(a * b for a, b in shares))
    for c in range(classes):
        of_class = predicted[target == c]
        assert torch.isnan(agreement.by_class[c]) == (not len(of_class))
        if len(of_class):
            assert float(agreement.by_class[c]) == pytest.approx(float((of_class == c).double().mean()))


def test_the_lowest_classes_are_named():
    target = torch.tensor([0, 0, 2, 2, 2, 2])
    predicted = torch.tensor([0, 0, 2, 2, 0, 1])
    assert lowest_classes(measure(predicted, target, 3), ("a", "b", "c")) == "c 50 %, a 100 %"


@given(SEEDS, st.integers(2, 20), st.sampled_from([-3, -2, -1, 1, 2, 3, 10]))
def test_shifted_rows_are_found(seed, classes, shift):
    target = labels(1000, classes, seed)
    predicted = guesses(target, classes, 0.9, seed)
    found = in_rows(predicted.roll(shift), target)
    assert found.rows == shift
    assert found.share == pytest.approx(0.9, abs=0.05)
    assert found.before == pytest.approx(1 / classes, abs=0.07)


def test_rows_are_found_by_number_also_where_some_labels_are_unknown():
    target = labels(1000, 3, 0)
    predicted = guesses(target, 3, 0.9, 0).roll(2)
    known = torch.randperm(1000)[:500]
    assert better_shift(torch.arange(1000), predicted, known, target[known]).rows == 2
    assert better_shift(torch.arange(0, 1000, 2), predicted[::2], known, target[known]).rows == 2


def test_a_shift_of_rows_in_the_order_of_classes_is_found_where_there_are_many():
    target = torch.arange(50).repeat_interleave(20)
    assert in_rows(target.roll(1), target).rows == 1
    assert in_rows(target, target) is None


@given(SEEDS, st.integers(2, 20))
def test_permuted_classes_are_found(seed, classes):
    target = labels(600, classes, seed)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).roll(1)
    predicted = order[guesses(target, classes, 0.9, seed)]
    moved = order != torch.arange(classes)
    found = better_order(predicted, target, classes)
    if moved.any() and (moved[target]).sum() > 120:
        assert found.classes.tolist() == order.tolist()
        assert found.share == pytest.approx(0.9, abs=0.06)


def test_two_swapped_classes_of_many_are_found_and_named():
    target = labels(4000, 50, 0)
    swapped = torch.arange(50)
    swapped[[3, 7]] = torch.tensor([7, 3])
    found = better_order(swapped[guesses(target, 50, 0.9, 0)], target, 50)
    assert (found.classes != torch.arange(50)).nonzero().flatten().tolist() == [3, 7]
    assert "class 7 of the teacher is label 3" in str(found)
    assert better_order(torch.zeros(10, dtype=torch.int64), torch.ones(10, dtype=torch.int64), MOST_CLASSES + 1) is None


def test_swapped_classes_are_found_although_one_is_rare():
    target = labels(1000, 2, 0, rare=0.02)
    assert better_order(1 - target, target, 2).classes.tolist() == [1, 0]


@given(SEEDS, st.integers(2, 10))
def test_predictions_of_other_samples_are_found(seed, classes):
    target = labels(3000, classes, seed)
    agreement = measure(labels(3000, classes, seed + 1), target, classes)
    if agreement.share <= agreement.largest:
        assert agreement.nothing_in_common


def test_a_teacher_that_always_predicts_a_rare_class_is_found():
    target = labels(1000, 2, 0, rare=0.02)
    assert measure(torch.ones_like(target), target, 2).nothing_in_common


# ---- no false alarms


@given(SEEDS, st.integers(2, 100), st.integers(1, 3000), st.floats(0.4, 1))
def test_a_teacher_that_is_right_more_often_than_not_is_accepted(seed, classes, n, accuracy):
    accuracy = max(accuracy, 1 / classes + 0.1)
    target = labels(n, classes, seed)
    assert not is_absurd(guesses(target, classes, accuracy, seed), target, classes)


@given(SEEDS, st.integers(2, 10), st.integers(1, 3000))
def test_wrong_labels_are_no_fault_of_the_teacher(seed, classes, n):
    target = labels(n, classes, seed)
    wrong = (target + 1) % classes  # all in one direction
    noisy = torch.where(torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.4, wrong, target)
    assert not is_absurd(target, noisy, classes)


@given(SEEDS, st.integers(10, 5000), st.sampled_from([0.005, 0.02, 0.1]), st.floats(0.5, 1))
def test_a_teacher_with_weighted_classes_is_below_the_largest_class_and_accepted(seed, n, rare, recall):
    target = labels(n, 2, seed, rare=rare)
    draws = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    predicted = torch.where(target == 1, draws < recall, draws < 0.2).long()
    assert not is_absurd(predicted, target, 2)


@given(SEEDS, st.integers(2, 5000), st.sampled_from([0.005, 0.02, 0.1]), st.integers(0, 30))
def test_a_teacher_that_nearly_always_predicts_the_largest_class_is_accepted(seed, n, rare, others):
    target = labels(n, 2, seed, rare=rare)
    predicted = torch.zeros_like(target)
    predicted[: min(others, n // 20)] = 1
    assert not is_absurd(predicted, target, 2)


@given(SEEDS, st.integers(2, 10), st.integers(1, 60))
def test_few_samples_are_not_judged_by_their_agreement(seed, classes, n):
    target = labels(n, classes, seed)
    assert not measure(labels(n, classes, seed + 1), target, classes).nothing_in_common


def test_a_teacher_that_takes_one_class_for_another_is_accepted():
    target = labels(3000, 5, 0)
    predicted = guesses(target, 5, 0.95, 0)
    assert not is_absurd(torch.where(predicted == 1, 2, predicted), target, 5)
