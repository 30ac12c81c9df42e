"""The trials of a search: the same number and the same luck for every method."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quick import short

from tgeokd.methods import METHODS, build_method
from tgeokd.runs.search import LR_FACTORS, TEMPERATURES, WEIGHT_DECAY_FACTORS, Trial, trials
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace

SHARED = ("lr_factor", "weight_decay_factor")


def as_text(trial: Trial) -> str:
    return json.dumps([trial.options, trial.settings], sort_keys=True)


def most(method: str) -> int:
    return 25 if METHODS[method].needs_teacher else 9


@pytest.mark.parametrize("method", METHODS)
def test_the_first_trial_is_the_presets_own_with_the_rows_options(method):
    options = {"kd": {"alpha": 0.5}, "tgeo": {"outer": "union"}}.get(method, {})
    config = short(f"method={method}")
    first = trials(method, options, 3, seed=0)[0]
    assert first == Trial(options, {})
    assert first.apply(config) == replace(config, options=options)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 1000))
def test_every_method_has_nine_and_no_two_are_alike(method, seed):
    for n in (9, most(method)):
        found = trials(method, {}, n, seed)
        assert len({as_text(trial) for trial in found}) == n


@pytest.mark.parametrize("method", METHODS)
def test_no_two_runs_of_a_search_are_alike_with_or_without_weight_decay_in_the_preset(method):
    for decay in (0.006, 0.0):
        config = short(f"method={method}", f"student.optimizer.weight_decay={decay}")
        runs = {json.dumps(t.apply(config).to_dict(), sort_keys=True) for t in trials(method, {}, most(method), 0)}
        assert len(runs) == most(method)


@given(st.integers(0, 1000), st.integers(1, 9))
def test_the_kth_trial_has_the_same_shared_part_for_every_method(seed, n):
    parts = {
        method: [[trial.settings.get(key) for key in SHARED] for trial in trials(method, {}, n, seed)]
        for method in METHODS
    }
    assert all(part == parts["ce"] for part in parts.values())
    heat = {
        method: [trial.settings.get("temperature") for trial in trials(method, {}, n, seed)]
        for method in METHODS
        if METHODS[method].needs_teacher
    }
    assert all(part == heat["kd"] for part in heat.values())


@given(st.integers(0, 1000))
def test_nine_trials_see_every_rate_decay_and_temperature_fairly(seed):
    settings = [trial.settings for trial in trials("kd", {}, 9, seed)[1:]]
    for key, values, least, largest in (
        ("lr_factor", LR_FACTORS, 2, 3),
        ("weight_decay_factor", WEIGHT_DECAY_FACTORS, 2, 3),
        ("temperature", TEMPERATURES, 2, 3),
    ):
        counts = Counter(s[key] for s in settings)
        assert set(counts) == set(values)
        assert all(least <= count <= largest for count in counts.values())


@given(st.integers(0, 1000), st.integers(2, 25))
def test_every_value_of_an_option_is_tried_about_equally_often(seed, n):
    for method, cls in METHODS.items():
        found = trials(method, {}, min(n, most(method)), seed)[1:]
        for option, values in cls.search_space.items():
            counts = Counter(trial.options[option] for trial in found)
            assert set(counts) <= set(values)
            assert max(counts.values()) - min(counts[value] for value in values) <= 1


def test_a_fixed_option_is_not_searched_and_the_others_are():
    found = trials("dkd", {"beta": 3.0}, 9, seed=1)
    assert {trial.options["beta"] for trial in found} == {3.0}
    assert {trial.options.get("warmup") for trial in found[1:]} == {None, 0}
    assert all(trial.options == {"alpha": 0.5} for trial in trials("kd", {"alpha": 0.5}, 9, seed=1))


def test_longer_searches_begin_like_shorter_ones():
    assert trials("tgeo", {}, 9, seed=4)[:5] == trials("tgeo", {}, 5, seed=4)


def test_the_seed_decides():
    assert trials("kd", {}, 9, seed=1) == trials("kd", {}, 9, seed=1)
    assert trials("kd", {}, 9, seed=1) != trials("kd", {}, 9, seed=2)


@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_a_search_space_is_one_the_method_takes(method):
    for option, values in METHODS[method].search_space.items():
        assert len(set(values)) == len(values) > 1
        for value in values:
            build_method(method, **{option: value})


def test_only_methods_with_a_teacher_search_a_temperature():
    assert all("temperature" not in trial.settings for trial in trials("ce", {}, 9, seed=0))
    assert all("temperature" in trial.settings for trial in trials("rw", {}, 9, seed=0)[1:])


def test_apply_multiplies_rate_and_decay_and_replaces_the_temperature():
    config = short("method=kd")
    trial = Trial({"alpha": 0.3}, {"lr_factor": 0.5, "weight_decay_factor": 3.0, "temperature": 1.0})
    found = trial.apply(config)
    assert found.student.optimizer.lr == pytest.approx(0.5 * config.student.optimizer.lr)
    assert found.student.optimizer.weight_decay == pytest.approx(3 * config.student.optimizer.weight_decay)
    assert (found.temperature, found.options) == (1.0, {"alpha": 0.3})
    assert found.teacher == config.teacher
    assert found.student.model == config.student.model


@pytest.mark.parametrize(("method", "n", "largest"), [("ce", 10, 9), ("kd", 26, 25), ("tgeo", 0, 25)])
def test_more_trials_than_there_are_are_refused(method, n, largest):
    with pytest.raises(InputError, match=f"'{method}'.*{largest}.*{n}"):
        trials(method, {}, n, seed=0)


def test_wrong_methods_and_options_are_refused():
    with pytest.raises(InputError, match="'tgoe'.*'tgeo'"):
        trials("tgoe", {}, 3, seed=0)
    with pytest.raises(InputError, match="'alhpa'.*'alpha'"):
        trials("kd", {"alhpa": 0.5}, 3, seed=0)
    with pytest.raises(InputError, match="alpha.*5"):
        trials("kd", {"alpha": 5.0}, 1, seed=0)
