"""Paired differences and Holm's correction against scipy, published numbers and the definitions."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from quick import a_run
from scipy.stats import ttest_1samp

from tgeokd.runs.plan import parse_method
from tgeokd.runs.statistics import PairedTest, holm, paired, paired_table, relative_improvement
from tgeokd.utils.errors import InputError

# ---- paired


def test_three_differences_by_hand():
    # mean 2, deviation 1, error 1 / sqrt 3; t(2 degrees, 97.5 %) = 4.302653; with 2 degrees of freedom the two-sided
    # p value of t is 1 - t / sqrt(t^2 + 2), here with t^2 = 12
    found = paired([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6
    )
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
    assert found.n == 3


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_any_differences_as_scipy(differences):
    assume(np.std(differences) > 1e-6)
    found, expected = paired(differences), ttest_1samp(differences, 0.0)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(differences), abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_the_interval_holds_zero_just_where_p_is_above_five_percent(differences):
    assume(np.std(differences) > 1e-6)
    found = paired(differences)
    assume(abs(found.p - 0.05) > 1e-6)
    assert (found.low <= 0 <= found.high) == (found.p > 0.05)


def test_swapping_the_sides_mirrors_the_interval():
    forward, backward = paired([0.3, -0.1, 0.5, 0.2]), paired([-0.3, 0.1, -0.5, -0.2])
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    assert backward.p == pytest.approx(forward.p)


def test_one_difference_has_a_mean_and_nothing_else():
    assert paired([0.25]) == PairedTest(0.25, None, None, None, 1)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.02, 0.02], [0.92 - 0.9, 0.72 - 0.7, 0.52 - 0.5]])
def test_equal_differences_give_no_certainty(differences):
    found = paired(differences)
    assert found.mean == pytest.approx(differences[0])
    assert (found.low, found.high, found.p, found.n) == (None, None, None, len(differences))


@pytest.mark.parametrize("differences", [[], [0.1, float("nan")], [float("inf")]])
def test_no_or_non_finite_differences_are_refused(differences):
    with pytest.raises(InputError, match=re.escape(str(differences))):
        paired(differences)


# ---- holm


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def rejected_step_by_step(ps, level):
    """Holm's procedure as he states it: from the smallest on, stop at the first that is too large."""
    rejected = set()
    for k, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[i] > level / (len(ps) - k):
            break
        rejected.add(i)
    return rejected


@given(p_values, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps, level):
    adjusted = holm(ps)
    assume(all(abs(a - level) > 1e-9 for a in adjusted))
    assert {i for i, a in enumerate(adjusted) if a <= level} == rejected_step_by_step(ps, level)


@given(p_values)
def test_holm_keeps_the_order_and_lies_between_the_raw_and_bonferroni(ps):
    adjusted = holm(ps)
    for p, a in zip(ps, adjusted, strict=True):
        assert p <= a <= min(1.0, len(ps) * p) + 1e-15
    by_raw = [a for _, a in sorted(zip(ps, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_impossible_p_values_are_refused(wrong):
    with pytest.raises(InputError, match=str(wrong)):
        holm([0.5, wrong])


# ---- paired_table


def runs(variant="clean", **rows):
    return [
        a_run(variant, method, seed, metrics={"accuracy": value, "nll": 1 - value})
        for method, values in rows.items()
        for seed, value in enumerate(values)
    ]


ROWS = {"ce": [0.5, 0.7, 0.6], "kd": [0.8, 0.9, 0.7], "tgeo": [0.9, 0.9, 0.9]}
UNION = "tgeo:outer=union"


def names(found):
    return [(pair.variant, pair.reference.label, pair.other.label, pair.n) for pair in found]


def test_a_reference_row_meets_every_other_row_of_its_variant():
    found = paired_table(runs(**ROWS) + runs("noisy", ce=[0.1, 0.2], tgeo=[0.4, 0.3]), "accuracy")
    assert names(found) == [("clean", "tgeo", "ce", 3), ("clean", "tgeo", "kd", 3), ("noisy", "tgeo", "ce", 2)]
    against_ce = paired([0.4, 0.2, 0.3])
    assert found[0].gain == pytest.approx(0.3)
    assert (found[0].low, found[0].high) == pytest.approx((against_ce.low, against_ce.high))
    assert found[0].p == pytest.approx(against_ce.p)
    assert {pair.metric for pair in found} == {"accuracy"}


def test_p_values_are_corrected_within_variant_and_reference_row():
    found = paired_table(runs(**ROWS) + runs("noisy", ce=[0.1, 0.2], tgeo=[0.4, 0.3]), "accuracy")
    smaller, larger = sorted([found[0].p, found[1].p])
    assert sorted(pair.p_holm for pair in found[:2]) == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    assert found[2].p_holm == found[2].p  # the only one of its family


def test_the_row_of_the_default_method_without_options_is_the_reference():
    content = runs(**ROWS, **{UNION: [0.95, 0.8, 0.9]})
    assert names(paired_table(content, "accuracy")) == [
        ("clean", "tgeo", "ce", 3),
        ("clean", "tgeo", "kd", 3),
        ("clean", "tgeo", "tgeo (outer=union)", 3),
    ]
    without = [run for run in content if run.label != "tgeo"]
    assert {pair.reference.label for pair in paired_table(without, "accuracy")} == {"tgeo (outer=union)"}


def test_every_reference_row_is_a_family_of_its_own_and_meets_the_other_reference_rows():
    wanted = [parse_method("tgeo"), parse_method(UNION)]
    found = paired_table(runs(**ROWS, **{UNION: [0.95, 0.8, 0.9]}), "accuracy", wanted)
    assert [(pair.reference, pair.other.label) for pair in found] == [
        *((wanted[0], other) for other in ("ce", "kd", "tgeo (outer=union)")),
        *((wanted[1], other) for other in ("ce", "kd", "tgeo")),
    ]
    assert found[2].gain == pytest.approx(-found[5].gain)
    assert found[:3] == paired_table(runs(**ROWS, **{UNION: [0.95, 0.8, 0.9]}), "accuracy")


def test_a_gain_speaks_for_the_reference_whichever_way_the_metric_points():
    up, down = (paired_table(runs(**ROWS), metric) for metric in ("accuracy", "nll"))  # nll = 1 - accuracy here
    assert up[0].gain == pytest.approx(0.3)
    for a, b in zip(up, down, strict=True):
        assert a.gain == pytest.approx(b.gain)
        assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_a_metric_of_the_validation_set_points_the_same_way():
    content = runs(**ROWS)
    for run in content:
        run.metrics["val_nll"] = run.metrics.pop("nll")
    assert paired_table(content, "val_nll")[0].gain == pytest.approx(0.3)


def test_only_shared_seeds_count_and_pairs_go_by_seed_not_by_order():
    content = runs(ce=[0.1, 0.2, 0.3], tgeo=[0.2, 0.5])
    (pair,) = paired_table(list(reversed(content)), "accuracy")
    assert pair.n == 2
    assert pair.gain == pytest.approx(0.2)


def test_what_cannot_be_tested_is_none_and_does_not_burden_the_family():
    found = paired_table(runs(ce=[0.5, 0.7, 0.6], kd=[0.8, 0.8, 0.8], tgeo=[0.9, 0.9, 0.9]), "accuracy")
    assert found[1].gain == pytest.approx(0.1)
    assert (found[1].low, found[1].p, found[1].p_holm) == (None, None, None)
    assert found[0].p_holm == found[0].p


def test_no_shared_seed_or_a_metric_that_is_not_finite_gives_no_numbers():
    content = [*runs(ce=[0.5, float("nan")], tgeo=[0.9, 0.8]), a_run("clean", "kd", 7, metrics={"accuracy": 0.5})]
    for pair, n in zip(paired_table(content, "accuracy"), (2, 0), strict=True):
        assert pair.n == n
        assert [pair.gain, pair.low, pair.high, pair.p, pair.p_holm] == [None] * 5


def test_without_a_reference_row_the_table_is_empty():
    assert paired_table(runs(ce=[0.5], kd=[0.6]), "accuracy") == []
    (pair,) = paired_table(runs(ce=[0.5], kd=[0.6]), "accuracy", [parse_method("kd")])
    assert (pair.reference.label, pair.other.label) == ("kd", "ce")


def test_an_unknown_metric_and_doubled_runs_are_refused():
    with pytest.raises(InputError, match=r"'acuracy'.*'accuracy'"):
        paired_table(runs(**ROWS), "acuracy")
    with pytest.raises(InputError, match=r"'ce'.*'clean'.*0"):
        paired_table(runs(ce=[0.5]) + runs(ce=[0.6]), "accuracy")


# ---- relative improvement


def test_relative_improvement_by_hand():
    assert relative_improvement(0.7, 0.6) == pytest.approx(1.0)
    assert relative_improvement(0.81423, 0.81404) == pytest.approx(0.31423 / 0.31404 - 1)
    assert relative_improvement(0.8, 0.8) == 0.0


@pytest.mark.parametrize("base", [0.5, 0.45])
def test_a_base_no_better_than_chance_has_no_relative_improvement(base):
    assert relative_improvement(0.8, base) is None
