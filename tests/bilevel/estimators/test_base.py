"""What all estimators share: ``inner_samples``, being chosen by name, their state."""

from __future__ import annotations

import copy

import pytest
import torch
from students import estimate, make_case, pieces, recorded_step, recorder_of, relative_error

from tgeokd.bilevel import ESTIMATORS, Estimator, OuterDirection, StepRecord, build_estimator, ratio_gradient
from tgeokd.utils.errors import InputError


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("method", ["forward", "finite_difference", "exact"])
def test_inner_samples_give_their_own_share_of_the_derivative(method, accumulate):
    case = make_case("mlp", optimizer="sgd")
    recorder = recorder_of(case, method)
    record = recorded_step(case, recorder, accumulate=accumulate)
    whole = estimate(case, recorder, record)
    sampled = build_estimator(method, inner_samples=2 * accumulate).estimate(record, (case.val_inputs, case.val_target))

    kept = sampled.nonzero().flatten()
    assert kept.tolist() == [i for index in pieces(len(whole), accumulate) for i in range(len(whole))[index][:2]]
    expected = torch.zeros_like(whole)
    expected[kept] = whole[kept] * len(whole) / len(kept)
    assert relative_error(sampled, expected) < (1e-4 if method == "finite_difference" else 1e-10)


@pytest.mark.parametrize(("student", "layer"), [("batch_norm_cnn", "BatchNorm2d"), ("dropout", "Dropout")])
def test_inner_samples_are_refused_where_samples_depend_on_each_other(student, layer):
    case = make_case(student, optimizer="sgd")
    recorder = recorder_of(case, "forward", inner_samples=2)
    with pytest.raises(InputError, match=f"inner_samples.*{layer}"):
        estimate(case, recorder, recorded_step(case, recorder))


@pytest.mark.parametrize("method", ["last_layer", "unrolled"])
def test_inner_samples_are_refused_by_estimators_that_cannot_use_them(method):
    with pytest.raises(InputError, match="inner_samples"):
        build_estimator(method, inner_samples=2)


@pytest.mark.parametrize("count", [0, -3])
def test_inner_samples_must_be_positive(count):
    with pytest.raises(InputError, match=f"inner_samples .* {count}"):
        build_estimator("forward", inner_samples=count)


def test_estimators_by_name():
    assert set(ESTIMATORS) == {"auto", "exact", "finite_difference", "forward", "last_layer", "unrolled"}
    for name in ESTIMATORS:
        estimator = build_estimator(name)
        assert isinstance(estimator, Estimator)
        assert build_estimator(estimator) is estimator


class Ones(Estimator):
    """An estimator of the user's own."""

    def estimate(self, record: StepRecord, outer_batch: tuple) -> torch.Tensor:
        return torch.ones(record.size)


def test_an_estimator_of_ones_own():
    case = make_case("mlp", "sgd")
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=Ones())
    assert found.tolist() == [1.0] * len(case.target)


def test_state_dict_restores_the_direction():
    def step(case, recorder):
        return estimate(case, recorder, recorded_step(case, recorder))

    case = make_case("mlp", "momentum")
    recorder = recorder_of(case, direction=OuterDirection(0.9, project_out_step_length=True))
    step(case, recorder)
    resumed = case.copied()
    other = recorder_of(resumed, direction=OuterDirection(0.9, project_out_step_length=True))
    other.estimator.load_state_dict(copy.deepcopy(recorder.estimator.state_dict()))
    assert torch.equal(step(case, recorder), step(resumed, other))
    with pytest.raises(InputError, match="ema_decay"):
        build_estimator("forward").load_state_dict(recorder.estimator.state_dict())
