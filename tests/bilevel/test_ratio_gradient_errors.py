"""Wrong input is refused early, in one line that names what was given."""

from __future__ import annotations

import math

import pytest
import torch
from students import make_case
from torch.optim import SGD, Adam, RMSprop

from tgeokd.bilevel import ratio_gradient
from tgeokd.training.step import DistillationStep
from tgeokd.utils.errors import InputError


class MySGD(SGD):
    """A subclass may step differently, so it is not treated as its parent."""


class MyAdam(Adam):
    pass


def pure(case, **changes):
    return ratio_gradient(case.student, case.optimizer, **{**case.data, **changes})


def loop(case, **changes):
    return DistillationStep(case.student, case.optimizer, "tgeo", **{"temperature": case.temperature, **changes})


FORMS = pytest.mark.parametrize("form", [pure, loop])


def test_unknown_estimator():
    with pytest.raises(InputError, match=r"'forwards'.*'forward'"):
        pure(make_case(), method="forwards")


@pytest.mark.parametrize("option", ["temperature", "clip_norm"])
@pytest.mark.parametrize("value", [0.0, -1.5, math.nan])
@FORMS
def test_numbers_that_must_be_positive(form, value, option):
    with pytest.raises(InputError, match=f"{option} .* {value}"):
        form(make_case(), **{option: value})


@pytest.mark.parametrize("optimizer", [RMSprop, MySGD, MyAdam])
@FORMS
def test_an_optimizer_without_a_known_derivative(form, optimizer):
    case = make_case("mlp", lambda params: optimizer(params, lr=0.1))
    with pytest.raises(InputError, match=rf"{optimizer.__name__}.*assume_sgd"):
        form(case)


@pytest.mark.parametrize("method", ["forward", "unrolled", "finite_difference", "last_layer"])
def test_assume_sgd_treats_it_as_plain_sgd(method):
    case = make_case("mlp", lambda params: RMSprop(params, lr=0.1))
    found = pure(case, method=method, assume_sgd=True)
    expected = pure(make_case("mlp", lambda params: SGD(params, lr=0.1)), method=method)
    assert torch.equal(found, expected)


def test_assume_sgd_does_not_affect_a_known_optimizer():
    case = make_case("mlp", "adam", steps=2)
    assert torch.equal(pure(case, assume_sgd=True), pure(case))


@pytest.mark.parametrize("shape", [(7,), (3,), (1,), (6, 1), ()])
def test_alpha_of_the_wrong_shape(shape):
    with pytest.raises(InputError, match=r"alpha .*\(6,\)"):
        pure(make_case(), alpha=torch.full(shape, 0.5))


@pytest.mark.parametrize("wrong", [-0.01, 1.01, -math.inf, math.inf, math.nan])
def test_alpha_outside_its_range(wrong):
    case = make_case()
    case.alpha[2] = wrong
    with pytest.raises(InputError, match=r"alpha .*\[0, 1\]"):
        pure(case)


def test_the_ends_of_alphas_range_are_allowed():
    case = make_case("mlp", "momentum", steps=2)
    case.alpha[:3], case.alpha[3:] = 0.0, 1.0
    assert pure(case).isfinite().all()


@FORMS
def test_a_student_with_nothing_to_train(form):
    case = make_case()
    case.student.requires_grad_(False)
    with pytest.raises(InputError, match="student"):
        form(case)


@FORMS
def test_an_optimizer_of_another_model(form):
    case, other = make_case(), make_case(seed=1)
    with pytest.raises(InputError, match="optimizer"):
        form(case.with_(optimizer=other.optimizer))


@pytest.mark.parametrize("accumulate", [0, -1, 7])
def test_accumulate_out_of_range(accumulate):
    with pytest.raises(InputError, match=f"accumulate .*6.* {accumulate}"):
        pure(make_case(), accumulate=accumulate)


def test_teacher_with_another_number_of_classes():
    with pytest.raises(InputError, match=r"\(6, 3\).*\(6, 4\)"):
        pure(make_case(), teacher_logits=torch.zeros(6, 3, dtype=torch.float64))
