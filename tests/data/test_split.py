"""Splits that keep the class shares."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from tgeokd.data.split import oversample, stratified_split, subset

TARGET = np.repeat([0, 1, 2], [600, 300, 100])


@given(
    st.lists(st.integers(20, 60), min_size=2, max_size=4),
    st.floats(0.1, 0.4),
    st.one_of(st.none(), st.floats(0.1, 0.4)),
    st.integers(0, 3),
)
def test_parts_are_disjoint_complete_and_stratified(sizes, held_out, test, seed):
    target = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = stratified_split(target, held_out=held_out, test=test, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(len(target)))
    wanted = [None, held_out, test or 0.0]
    for part, share in zip(parts, wanted, strict=True):
        assert (np.diff(part) > 0).all()
        if share is not None:
            assert len(part) == round(share * len(target))
        for c, size in enumerate(sizes):  # two draws one after the other: each may be off by one
            assert abs((target[part] == c).sum() - size * len(part) / len(target)) <= 2


def test_sizes_as_numbers_and_no_test_part():
    train, held_out, test = stratified_split(TARGET, held_out=100, test=200, seed=0)
    assert [len(train), len(held_out), len(test)] == [700, 100, 200]
    assert np.bincount(TARGET[test]).tolist() == [120, 60, 20]
    train, held_out, test = stratified_split(TARGET, held_out=100, test=None, seed=0)
    assert [len(train), len(held_out), len(test)] == [900, 100, 0]


def test_the_seed_decides():
    one, again, other = (stratified_split(TARGET, held_out=0.1, test=0.1, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("target", "sizes", "mentioned"),
    [
        (
            [0] * 50 + [1] * 2,
            {"held_out": 0.2, "test": 0.2},
            ("'rare'", "2 rows"),
        ),
        ([0] * 50 + [1], {"held_out": 0.2, "test": None}, ("'rare'", "1 rows")),
        ([0] * 97 + [1] * 3, {"held_out": 0.1, "test": 0.1}, ("10 rows", "3 rows", "'rare'")),
        ([0, 1] * 10, {"held_out": 1, "test": None}, ("held_out", "1 of 20")),
        ([0, 1] * 10, {"held_out": 0.5, "test": 0.5}, ("train", "0 of 20")),
        ([0, 1] * 10, {"held_out": 0.9, "test": 0.9}, ("train", "0 of 20")),
        ([0, 1] * 10, {"held_out": 1.5, "test": None}, ("held_out", "1.5")),
        ([0, 1] * 10, {"held_out": 0.2, "test": 0}, ("test", "not 0")),
    ],
)
def test_parts_that_cannot_be(target, sizes, mentioned):
    with refused(*mentioned):
        stratified_split(np.array(target), **sizes, seed=0, class_names=("common", "rare"))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data(), st.integers(0, 3))
def test_a_subset_keeps_shares_and_every_class(sizes, data, seed):
    target = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    size = data.draw(st.integers(len(sizes), len(target)))
    rows = subset(target, size, seed=seed)
    assert len(rows) == size
    assert (np.diff(rows) > 0).all()
    for c, total in enumerate(sizes):
        count = (target[rows] == c).sum()
        assert count >= 1
        assert abs(count - total * size / len(target)) <= len(sizes)


def test_subsets_that_cannot_be():
    for size in (2, 1001):
        with refused(f"train={size}", "[3, 1000]"):
            subset(TARGET, size, seed=0)


def test_oversampling_repeats_the_rarer_classes():
    rows = oversample(TARGET, seed=0)
    assert np.bincount(TARGET[rows]).tolist() == [600, 600, 600]
    assert rows[:1000].tolist() == list(range(1000))
    repeats = Counter(rows[TARGET[rows] == 2].tolist())
    assert min(repeats.values()) >= 1
    assert max(repeats.values()) < 30  # drawn from all rows of the class, not one row over and over
    assert np.array_equal(rows, oversample(TARGET, seed=0))
    assert not np.array_equal(rows, oversample(TARGET, seed=1))


def test_oversampling_a_single_class_changes_nothing():
    assert oversample(np.zeros(4, dtype=np.int64), seed=0).tolist() == [0, 1, 2, 3]
