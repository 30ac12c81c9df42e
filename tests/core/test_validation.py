"""Checks of labels and classes."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from tgeokd.core.validation import (
    check_at_least,
    check_choice,
    check_positive,
    check_same_classes,
    check_validation_classes,
    validate_labels,
)
from tgeokd.utils.errors import InputError


@pytest.mark.parametrize("value", [0, -1.5, math.nan])
def test_numbers_that_must_be_positive(value):
    check_positive("clip_norm", 1e-9)
    check_positive("clip_norm", None)
    with pytest.raises(InputError, match=f"clip_norm .* {value}"):
        check_positive("clip_norm", value)


@pytest.mark.parametrize("value", [0, -1.5, math.nan])
def test_numbers_with_a_minimum(value):
    check_at_least(1, steps=1, warmup=None)
    with pytest.raises(InputError, match=f"warmup .*1.* {value}"):
        check_at_least(1, steps=2, warmup=value)


@pytest.mark.parametrize("value", ["wide", "", None])
def test_values_of_a_literal(value):
    check_choice("form", "long", Literal["long", "short"])
    with pytest.raises(InputError, match=f"form .*long, short.* {value!r}"):
        check_choice("form", value, Literal["long", "short"])


@pytest.mark.parametrize("target", [[0, 1, 2], [2], []])
def test_good_labels_pass(target):
    validate_labels(torch.tensor(target, dtype=torch.int64), 3, "training loader")


@pytest.mark.parametrize(("labels", "wrong"), [([0, 12, 3], 12), ([0, 10], 10), ([-1, 5], -1), ([0, -100, 11], -100)])
def test_labels_out_of_range(labels, wrong):
    with pytest.raises(InputError, match=f"validation loader .*10 classes.* {wrong}$"):
        validate_labels(torch.tensor(labels), 10, "validation loader")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool, torch.uint8])
def test_labels_of_another_type(dtype):
    with pytest.raises(InputError, match=f"training loader .*int64.* {dtype}"):
        validate_labels(torch.zeros(3, dtype=dtype), 3, "training loader")


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), ()])
def test_labels_of_another_shape(shape):
    with pytest.raises(InputError, match="training loader") as error:
        validate_labels(torch.zeros(shape, dtype=torch.int64), 3, "training loader")
    assert str(shape) in str(error.value)


def test_labels_that_are_not_a_tensor():
    with pytest.raises(InputError, match="list"):
        validate_labels([0, 1], 3, "training loader")


def test_student_and_teacher_with_different_numbers_of_classes():
    check_same_classes(torch.zeros(4, 3), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"student .*10 .*teacher .*12"):
        check_same_classes(torch.zeros(4, 10), torch.zeros(4, 12))


def test_a_class_that_is_missing_from_the_validation_set():
    check_validation_classes(torch.tensor([5, 0, 2]), torch.tensor([1, 0, 1]))  # class 1 is in neither
    check_validation_classes(torch.tensor([5, 0]), torch.tensor([1, 7]))  # class 1 is in the validation set alone
    with pytest.raises(InputError, match="class 0, 2,"):
        check_validation_classes(torch.tensor([5, 3, 1, 0]), torch.tensor([0, 1, 0, 0]))


def test_the_list_of_missing_classes_stays_short():
    with pytest.raises(InputError, match=r"0, 1, .*, 19, \.\.\.,"):
        check_validation_classes(torch.ones(30), torch.zeros(30))
