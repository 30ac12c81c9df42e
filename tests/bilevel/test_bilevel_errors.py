"""What a user can get wrong is refused early, in one line that says how."""

from __future__ import annotations

import math

import pytest
import torch
from students import make_case, relative_error
from torch.optim import SGD, Adam, RMSprop

from tgeokd.bilevel import Lookahead, ratio_gradient
from tgeokd.utils.errors import InputError


class MySGD(SGD):
    """A subclass may step differently, so it is not taken for its parent."""


class MyAdam(Adam):
    pass


def pure(case, **changes):
    return ratio_gradient(case.student, case.optimizer, **{**case.data, **changes})


def loop(case, **changes):
    return Lookahead(case.student, case.optimizer, **{"temperature": case.temperature, **changes})


@pytest.mark.parametrize("form", [pure, loop])
def test_unknown_method(form):
    names = "auto, exact, forward, finite_difference, last_layer, unrolled"
    with pytest.raises(InputError, match=f"hypergradient must be one of {names}, not 'backward'"):
        form(make_case(), method="backward")


@pytest.mark.parametrize("temperature", [0, -1.5, math.nan])
@pytest.mark.parametrize("form", [pure, loop])
def test_temperature_must_be_positive(form, temperature):
    with pytest.raises(InputError, match="temperature must be > 0, not"):
        form(make_case(), temperature=temperature)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("form", [pure, loop])
def test_clip_norm_must_be_positive(form, clip_norm):
    with pytest.raises(InputError, match="clip_norm must be > 0, not"):
        form(make_case(), clip_norm=clip_norm)


@pytest.mark.parametrize("optimizer", [RMSprop, MySGD, MyAdam])
@pytest.mark.parametrize("form", [pure, loop])
def test_an_optimizer_without_a_known_derivative(form, optimizer):
    case = make_case("mlp", lambda params: optimizer(params, lr=0.1))
    with pytest.raises(InputError) as error:
        form(case)
    for word in (optimizer.__name__, "SGD", "Adam", "AdamW", "assume_sgd"):
        assert word in str(error.value)


@pytest.mark.parametrize("method", ["forward", "unrolled", "finite_difference", "last_layer"])
def test_assume_sgd_treats_it_as_plain_sgd(method):
    case = make_case("mlp", lambda params: RMSprop(params, lr=0.1))
    found = pure(case, method=method, assume_sgd=True)
    expected = pure(make_case("mlp", lambda params: SGD(params, lr=0.1)), method=method)
    assert torch.equal(found, expected)


def test_assume_sgd_in_a_loop_looks_from_where_the_optimizer_really_went():
    # D = lr as for SGD, but the held-out gradient is taken where RMSprop has gone
    case = make_case("mlp", lambda params: RMSprop(params, lr=1e-6))
    lookahead = loop(case, method="forward", assume_sgd=True)
    before = [p.detach().clone() for p in case.student.parameters()]
    lookahead.forward(case.inputs, case.target, case.teacher_logits).square().mean().backward()
    lookahead.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, case.student.parameters(), strict=True))
    found = lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha)
    # with so small a step all agree on where the held-out gradient is taken
    expected = pure(make_case("mlp", lambda params: SGD(params, lr=1e-6)))
    assert relative_error(found * 1e6, expected * 1e6) <= 1e-4


def test_assume_sgd_leaves_a_known_optimizer_alone():
    case = make_case("mlp", "adam", steps=2)
    assert torch.equal(pure(case, assume_sgd=True), pure(case))


@pytest.mark.parametrize("method", ["forward", "unrolled", "last_layer", "finite_difference"])
@pytest.mark.parametrize("shape", [(7,), (1,), (6, 1)])
def test_alpha_of_the_wrong_length(method, shape):
    with pytest.raises(InputError, match=r"alpha must have shape \(6,\), one ratio a sample of the step, not \("):
        pure(make_case(), alpha=torch.full(shape, 0.5), method=method)


@pytest.mark.parametrize("shape", [(3,), ()])
def test_alpha_that_is_too_short(shape):
    with pytest.raises(InputError, match=r"alpha must have shape \(6,\)"):
        pure(make_case(), alpha=torch.full(shape, 0.5))


@pytest.mark.parametrize("wrong", [-0.01, 1.01, -math.inf, math.inf])
def test_alpha_outside_its_range(wrong):
    case = make_case()
    case.alpha[2] = wrong
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\], but spans"):
        pure(case)


def test_alpha_that_is_not_a_number():
    case = make_case()
    case.alpha[2] = math.nan
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
        pure(case)


def test_the_ends_of_alphas_range_are_allowed():
    case = make_case("mlp", "momentum", steps=2)
    case.alpha[:3], case.alpha[3:] = 0.0, 1.0
    assert pure(case).isfinite().all()


@pytest.mark.parametrize("form", [pure, loop])
def test_a_student_with_nothing_to_train(form):
    case = make_case()
    case.student.requires_grad_(False)
    with pytest.raises(InputError, match="the student has no trainable parameter"):
        form(case)


@pytest.mark.parametrize("accumulate", [0, -1, 7])
def test_accumulate_out_of_range(accumulate):
    with pytest.raises(
        InputError, match=f"accumulate must lie between 1 and the 6 samples of the step, not {accumulate}"
    ):
        pure(make_case(), accumulate=accumulate)


@pytest.mark.parametrize("method", ["forward", "finite_difference", "unrolled"])
def test_an_optimizer_of_another_model(method):
    case, other = make_case(), make_case(seed=1)
    with pytest.raises(InputError, match="optimizer"):
        ratio_gradient(case.student, other.optimizer, **case.data, method=method)


def test_teacher_of_another_class_count():
    with pytest.raises(InputError, match=r"student logits have shape \(6, 4\) but teacher logits \(6, 3\)"):
        pure(make_case(), teacher_logits=torch.zeros(6, 3, dtype=torch.float64))
