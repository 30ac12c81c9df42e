"""Paired differences over the seeds, and their text."""

from __future__ import annotations

import pytest
from scipy import stats

from tgeokd.paper.formatting import difference, interval, mean, subtract, verdict
from tgeokd.runs.statistics import PairedTest

UP, DOWN, EITHER = (0.30, 0.32, 0.31), (-0.30, -0.32, -0.31), (0.30, -0.30, 0.01)


def test_the_printed_numbers_are_scipy_s_t_interval():
    low, high = stats.t.interval(0.95, 2, loc=0.31, scale=stats.sem(UP))
    assert f"+0.31 (95 % interval {low:+.2f} to {high:+.2f})" == interval(difference(UP))
    shown = interval(difference(UP), "accuracy")
    assert all(text in shown for text in ("+31.00 points", f"{100 * low:+.2f}", f"{100 * high:+.2f}"))
    assert interval(difference([0.1]), "nll").startswith("+0.1000 (")


@pytest.mark.parametrize("values", [[0.1], [0.5, 0.5], []])
def test_no_interval_is_printed_without_a_spread(values):
    assert "95" not in interval(difference(values))


def test_missing_seeds_are_left_out():
    assert difference([None, 1.0, 2.0]) == difference([1.0, 2.0])
    assert difference([None]) is None
    assert mean([None, 1.0, 2.0]) == 1.5
    assert mean([None]) is None
    assert subtract([1.0, None, 3.0], [0.5, 1.0, None]) == [0.5, None, None]


@pytest.mark.parametrize("values", [EITHER, (0.3,), (0.3, 0.3), (0.0, 0.0), ()])
def test_no_side_is_taken_where_the_interval_allows_none(values):
    assert verdict(difference(values), "above", "below") not in ("above", "below")


def test_a_side_is_taken_where_the_interval_excludes_zero():
    assert verdict(difference(UP), "above", "below") == "above"
    assert verdict(difference(DOWN), "above", "below") == "below"
    assert verdict(PairedTest(0.1, 0.0, 0.2, 0.05, 3), "above", "below") not in ("above", "below")
