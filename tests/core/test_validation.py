"""Every message of the checks, and the guard against NaN."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tgeokd.core.validation import FiniteGuard, check_same_classes, check_validation_classes, validate_labels
from tgeokd.utils.errors import InputError


def refused(message):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# ---- labels


@pytest.mark.parametrize("target", [[0, 1, 2], [2], []])
def test_good_labels_pass(target):
    validate_labels(torch.tensor(target, dtype=torch.int64), 3, "training loader")


@pytest.mark.parametrize(("labels", "wrong"), [([0, 12, 3], 12), ([0, 10], 10), ([-1, 5], -1), ([0, -100, 11], -100)])
def test_labels_out_of_range(labels, wrong):
    with refused(f"target of the held-out loader has label {wrong} but the student has 10 classes"):
        validate_labels(torch.tensor(labels), 10, "held-out loader")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool, torch.uint8])
def test_labels_of_another_type(dtype):
    with refused(f"labels of the training loader must be class indices of dtype int64, not {dtype}"):
        validate_labels(torch.zeros(3, dtype=dtype), 3, "training loader")


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), ()])
def test_labels_of_another_shape(shape):
    with refused(f"labels of the training loader must be a tensor of shape (N,), not shape {shape}"):
        validate_labels(torch.zeros(shape, dtype=torch.int64), 3, "training loader")


def test_labels_that_are_no_tensor():
    with refused("labels of the training loader must be a tensor of shape (N,), not list"):
        validate_labels([0, 1], 3, "training loader")


# ---- classes


def test_student_and_teacher_of_different_class_counts():
    check_same_classes(torch.zeros(4, 3), torch.zeros(2, 3))
    with refused("the student has 10 classes but the teacher has 12"):
        check_same_classes(torch.zeros(4, 10), torch.zeros(4, 12))


def test_a_class_that_is_not_held_out():
    check_validation_classes(torch.tensor([5, 0, 2]), torch.tensor([1, 0, 1]))  # class 1 is nowhere
    check_validation_classes(torch.tensor([5, 0]), torch.tensor([1, 7]))  # more classes held out than trained on
    with refused(
        "the held-out set has no sample of class 0, 2, which the training set has; split by class (stratified)"
    ):
        check_validation_classes(torch.tensor([5, 3, 1, 0]), torch.tensor([0, 1, 0, 0]))


def test_the_list_of_missing_classes_stays_short():
    with pytest.raises(InputError, match=r"no sample of class 0, 1, .*, 19, \.\.\., which"):
        check_validation_classes(torch.ones(30), torch.zeros(30))


# ---- NaN

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
def test_guard_stops_at_once_on_the_cpu(bad):
    guard = FiniteGuard(torch.device("cpu"))
    guard.see("teacher", torch.zeros(2, 3), 0)
    guard.see("teacher", torch.tensor([[1e30, -1e30]]), 1)
    with refused("the teacher's logits are NaN or infinite in step 2"):
        guard.see("teacher", torch.tensor([[0.0, bad]]), 2)
    guard.read()  # nothing is left over


def test_guard_has_advice_for_the_student():
    with refused("the student's logits are NaN or infinite in step 7; a lower learning rate or clip_norm may help"):
        FiniteGuard(torch.device("cpu")).see("student", torch.tensor([[math.nan]], requires_grad=True), 7)


def deferred(interval=10):
    guard = FiniteGuard(torch.device("cpu"), interval)
    guard._immediate = False  # as on an accelerator
    return guard


def test_deferred_guard_notes_the_first_bad_step_only():
    guard = deferred(interval=100)
    for step in range(8):
        guard.see("student", torch.tensor([[math.nan if step in (3, 5) else 0.0]]), step)
    with pytest.raises(InputError, match="student's logits are NaN or infinite in step 3;"):
        guard.read()


def test_deferred_guard_reads_at_its_interval():
    guard = deferred(interval=10)
    for step in range(9):
        guard.see("teacher", torch.tensor([[math.inf if step == 4 else 0.0]]), step)  # noted, not read
    with refused("the teacher's logits are NaN or infinite in step 4"):
        guard.see("teacher", torch.zeros(1, 1), 9)


def test_deferred_guard_names_the_earlier_of_two():
    guard = deferred(interval=100)
    guard.see("teacher", torch.zeros(1, 2), 0)
    guard.see("student", torch.full((1, 2), math.nan), 0)
    guard.see("teacher", torch.full((1, 2), math.nan), 1)
    with pytest.raises(InputError, match=r"the student's logits .* in step 0"):
        guard.read()


def test_deferred_guard_notes_a_bad_step_zero():
    guard = deferred(interval=100)
    guard.see("teacher", torch.full((1, 2), math.nan), 0)
    guard.see("teacher", torch.full((1, 2), math.nan), 1)
    with pytest.raises(InputError, match="in step 0"):
        guard.read()


def test_deferred_guard_lets_a_sound_run_pass():
    guard = deferred(interval=3)
    for step in range(10):
        guard.see("student", torch.ones(2, 2), step)
    guard.read()
