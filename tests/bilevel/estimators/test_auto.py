"""``auto`` and ``exact``: each chooses another estimator once, and logs it."""

from __future__ import annotations

import logging

import pytest
from students import NO_FORWARD_MODE, estimate, hypergradient, make_case, recorded_step, recorder_of, relative_error

from tgeokd.bilevel import ratio_gradient
from tgeokd.bilevel.estimators.auto import ExactEstimator
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.utils.errors import InputError

LOGGER = "tgeokd.bilevel.estimators.auto"


def three_steps(case, method, reference, caplog):
    """The estimator after three recorded steps, each compared with the pure function, and the levels of its log lines."""
    recorder = recorder_of(case, method)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for _ in range(3):
            expected = ratio_gradient(case.student, case.optimizer, **case.data, method=reference)
            found = estimate(case, recorder, recorded_step(case, recorder))
            assert relative_error(found, expected) <= (1e-6 if reference == "finite_difference" else 1e-10)
    return recorder.estimator, [record.levelno for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize("student", ["mlp", "encoder_layer", "direct_attention", "mixed", "recurrent"])
def test_exact_is_forward_mode_where_the_student_supports_it(student, caplog):
    estimator, levels = three_steps(make_case(student, "momentum"), "exact", "forward", caplog)
    assert levels == [logging.INFO]
    assert estimator.math_attention


@pytest.mark.parametrize("student", NO_FORWARD_MODE)
def test_exact_falls_back_to_finite_differences(student, caplog):
    estimator, levels = three_steps(make_case(student, "momentum"), "exact", "finite_difference", caplog)
    assert levels == [logging.WARNING]
    assert not estimator.math_attention  # the passes use whatever attention kernel is fastest


def test_exact_chooses_again_for_another_student():
    estimator = ExactEstimator()
    for student in ("mlp", "embedding_bag", "mlp"):
        case = make_case(student, "momentum")
        expected = ratio_gradient(case.student, case.optimizer, **case.data, method="finite_difference")
        assert relative_error(hypergradient(case, estimator), expected) <= 1e-5


@pytest.mark.parametrize("student", NO_FORWARD_MODE)
def test_forward_is_not_replaced(student):
    case = make_case(student, "momentum")
    with pytest.raises(NotImplementedError, match="finite_difference"):
        ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    with pytest.raises(NotImplementedError, match="finite_difference"):
        hypergradient(case, "forward")


def test_auto_is_last_layer_where_there_is_a_head(caplog):
    estimator, levels = three_steps(make_case("mlp", "momentum"), "auto", "last_layer", caplog)
    assert levels == [logging.INFO]
    assert type(estimator) is LastLayerEstimator


def _frozen_head(case):
    for param in list(case.student)[-1].parameters():
        param.requires_grad_(False)


def _head_left_out(case):
    case.optimizer.param_groups[0]["params"] = list(case.student.parameters())[:-2]


@pytest.mark.parametrize("change", [_frozen_head, _head_left_out])
def test_auto_is_exact_where_the_head_is_not_trained(change, caplog):
    case = make_case("mlp", "sgd")
    change(case)
    estimator, levels = three_steps(case, "auto", "forward", caplog)
    assert levels == [logging.INFO, logging.INFO]  # that it is exact, and that this is forward mode
    assert type(estimator) is ExactEstimator


def test_auto_keeps_its_options():
    case = make_case("mlp", "sgd")
    _frozen_head(case)
    assert (hypergradient(case, "auto", inner_samples=2) != 0).sum() == 2
    with pytest.raises(InputError, match="inner_samples"):
        hypergradient(make_case("mlp", "sgd"), "auto", inner_samples=2)
