"""Random numbers as a function of ids: against integer arithmetic in Python, and by statistical tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from tgeokd.data.tables.counter import below, random_bits, row_uniform

MASK = 2**64 - 1


def mixed(x: int) -> int:
    """splitmix64 as published, in unbounded integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_the_reference_is_the_published_generator():
    state, found = 1234567, []  # its first numbers are in the test vectors of several implementations
    for _ in range(3):
        found.append(mixed(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(0, 2**40), st.integers(0, 10**6))
def test_bits_are_those_of_whole_number_arithmetic(ids, seed, view):
    key = mixed(mixed(seed) ^ view)
    expected = [mixed((i & MASK) ^ key) & (MASK >> 1) for i in ids]
    assert random_bits(torch.tensor(ids), seed, view).tolist() == expected


@pytest.mark.parametrize("bound", [2, 3, 9, 17])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_numbers_below_a_bound_are_uniform(bound, field):
    numbers = below(random_bits(torch.arange(30_000), 3, 1), field, bound)
    assert chisquare(np.bincount(numbers, minlength=bound)).pvalue > 1e-3


def test_fields_views_seeds_and_neighbours_are_independent():
    ids = torch.arange(40_000)
    bits = random_bits(ids, 0, 0)
    others = {
        "field": below(bits, 1, 9),
        "view": below(random_bits(ids, 0, 1), 0, 9),
        "seed": below(random_bits(ids, 1, 0), 0, 9),
        "swapped": below(random_bits(ids, 1, 1), 0, 9),
        "neighbour": below(bits, 0, 9).roll(1),
    }
    for what, other in others.items():
        table = np.bincount(below(bits, 0, 9) * 9 + other, minlength=81).reshape(9, 9)
        assert chi2_contingency(table).pvalue > 1e-3, what


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(0, 2**31 - 1), st.integers(0, 1))
def test_uniform_numbers_of_rows_are_the_upper_bits_of_the_hash(rows, seed, purpose):
    key = mixed(seed * 64 + purpose)
    expected = [(mixed(row ^ key) >> 11) / 2**53 for row in rows]
    assert row_uniform(np.array(rows), seed, purpose).tolist() == expected


def test_numbers_of_rows_are_uniform_and_independent_of_seed_and_purpose():
    rows = np.arange(100_000)
    draws = [row_uniform(rows, seed, purpose) for seed, purpose in ((0, 0), (0, 1), (1, 0), (2**31 - 1, 0))]
    for i, draw in enumerate(draws):
        assert draw.min() >= 0
        assert draw.max() < 1
        assert chisquare(np.histogram(draw, 20, (0, 1))[0]).pvalue > 0.001
        assert abs(np.corrcoef(draw[:-1], draw[1:])[0, 1]) < 4 / np.sqrt(len(rows))
        for other in draws[:i]:
            assert abs(np.corrcoef(draw, other)[0, 1]) < 4 / np.sqrt(len(rows))
