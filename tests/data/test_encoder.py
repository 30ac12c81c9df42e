"""Columns as numbers and codes, against scikit-learn's scaler and counts made by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from realdata import data_dir
from refusals import refused
from sklearn.preprocessing import StandardScaler

from tgeokd.data.tables import encoder_from_dict
from tgeokd.data.tables.encoder import FeatureEncoder

FRAME = pl.DataFrame(
    {
        "age": [20, 40, None, 60],
        "wage": [1.5, float("inf"), 2.5, float("nan")],
        "same": [7, 7, 7, 7],
        "town": ["b", "a", " a ", None],
        "floor": [3.0, 3.0, 1.0, float("nan")],
    }
)


def _fit(frame=FRAME, numeric=("age", "wage", "same"), categorical=("town", "floor"), **options):
    return FeatureEncoder.fit(frame, numeric=numeric, categorical=categorical, **options)


def test_by_hand():
    encoder = _fit()
    numbers, codes = encoder.transform(FRAME)
    root = 1.5**0.5  # ages 20, 40, 60: mean 40, variance 800 / 3
    expected = [
        # age, wage, same, age is missing, wage is missing
        [-root, -1, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 1, 0, 1, 0],
        [root, 0, 0, 0, 1],
    ]
    assert numbers.dtype == torch.float32
    torch.testing.assert_close(numbers, torch.tensor(expected))
    assert codes.dtype == torch.int64
    assert codes.tolist() == [[3, 2], [2, 2], [2, 3], [0, 0]]  # "a" twice, then "b"; 3 twice, then 1
    assert (encoder.inputs.kind, encoder.inputs.shape, encoder.inputs.categories) == ("table", (5,), (4, 4))
    assert encoder.missing(FRAME) == {"age": 1, "wage": 2, "town": 1, "floor": 1}
    assert encoder.infinite(FRAME) == {"wage": 1}


def test_a_new_row_gets_the_fitted_scale_and_codes():
    new = pl.DataFrame({"age": [50], "wage": [None], "same": [1000], "town": ["elsewhere"], "floor": ["1"]})
    numbers, codes = _fit().transform(new)
    assert numbers[0].tolist() == pytest.approx([10 / (800 / 3) ** 0.5, 0, 0, 0, 1])  # a constant column says nothing
    assert codes.tolist() == [[1, 3]]  # "1" as text is the 1.0 it was fitted on
    assert _fit().unseen(new) == {"town": 1}


@given(arrays(np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.floats(-1e6, 1e6, width=32)))
def test_numbers_as_scikit_learn_standardises_them(values):
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1]})
    numbers, _ = _fit(frame, ("a", "b"), ()).transform(frame)
    spread = values.std(axis=0) > 1e-6 * np.abs(values).max(axis=0)  # the scaler's own rounding decides below
    expected = StandardScaler().fit_transform(values)
    np.testing.assert_allclose(numbers.numpy()[:, spread], expected[:, spread], rtol=1e-3, atol=1e-3)
    assert torch.isfinite(numbers).all()


@given(st.lists(st.sampled_from(["x", "y", "z", "w", None]), min_size=1, max_size=40), st.integers(1, 5))
def test_codes_by_frequency_then_name(values, min_count):
    counts = Counter(value for value in values if value is not None)
    ranked = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
    frame = pl.DataFrame({"c": values}, schema={"c": pl.String})
    encoder = _fit(frame, (), ("c",), min_count=min_count)
    _, codes = encoder.transform(frame)
    assert codes[:, 0].tolist() == [
        0 if value is None else 2 + ranked.index(value) if value in ranked else 1 for value in values
    ]
    assert encoder.inputs.categories == (2 + len(ranked),)
    rare = sum(count for count in counts.values() if count < min_count)
    assert encoder.unseen(frame) == ({"c": rare} if rare else {})


def test_whole_numbers_are_one_category_in_integer_float_and_text_columns():
    encoder = _fit(pl.DataFrame({"c": [3, 3, 1]}), (), ("c",))
    for same in ([3, 1, None], [3.0, 1.0, float("nan")], ["3", " 1", ""]):
        assert encoder.transform(pl.DataFrame({"c": same}))[1][:, 0].tolist() == [2, 3, 0]


def test_values_too_large_for_a_float_are_missing_and_huge_columns_do_not_overflow():
    huge = pl.DataFrame({"a": [1e300, -1e300]})
    assert _fit(huge, ("a",), ()).transform(huge)[0].tolist() == [[1], [-1]]
    small = _fit(pl.DataFrame({"a": [0.0, 1.0, None]}), ("a",), ())
    assert small.transform(huge)[0].tolist() == [[0, 1], [0, 1]]


def test_text_is_read_as_numbers_and_booleans_count():
    frame = pl.DataFrame({"a": [" 1", "3", ""], "b": [True, False, None]})
    numbers, _ = _fit(frame, ("a", "b"), ()).transform(frame)
    assert numbers.tolist() == [[-1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1]]


def test_a_column_without_any_value():
    frame = pl.DataFrame({"a": [None, None], "c": [None, None]})
    numbers, codes = _fit(frame, ("a",), ("c",)).transform(frame)
    assert numbers.tolist() == [[0, 1], [0, 1]]
    assert codes.tolist() == [[0], [0]]


def test_only_numbers_or_only_categories():
    numbers, codes = _fit(FRAME, ("same",), ()).transform(FRAME)
    assert (numbers.shape, codes.shape) == ((4, 1), (4, 0))
    numbers, codes = _fit(FRAME, (), ("town",)).transform(FRAME)
    assert (numbers.shape, codes.shape) == ((4, 0), (4, 1))


def test_survives_json():
    for encoder in (_fit(), _fit(FRAME, (), ("town",))):
        again = encoder_from_dict(json.loads(json.dumps(encoder.to_dict())))
        assert again == encoder
        for one, other in zip(again.transform(FRAME), encoder.transform(FRAME), strict=True):
            assert torch.equal(one, other)


@pytest.mark.realdata
def test_real_columns_are_standardised_and_keep_their_categories():
    frame = pl.read_parquet(data_dir() / "adult" / "adult.parquet")
    encoder = _fit(frame, ("age", "hours-per-week"), ("workclass", "native-country"), min_count=20)
    numbers, codes = encoder.transform(frame)
    torch.testing.assert_close(numbers.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    for i, column in enumerate(encoder.categorical):
        counts = Counter(frame[column.name].to_list())
        assert (codes[:, i] == 0).sum() == counts[None]
        assert [int((codes[:, i] == 2 + k).sum()) for k in range(len(column.values))] == [
            counts[v] for v in column.values
        ]
        assert min(counts[v] for v in column.values) >= 20


@pytest.mark.parametrize(
    ("call", "mentioned"),
    [
        (lambda: _fit(FRAME, ("agee",), ()), ("'agee'", "'age'")),
        (lambda: _fit(FRAME, ("town",), ()), ("row 0", "column town", "'b'")),
        (lambda: _fit(FRAME, ("age",), ("age",)), ("'age'",)),
        (lambda: _fit(FRAME, (), ()), ("column",)),
        (lambda: _fit(FRAME[:0]), ("row",)),
        (lambda: _fit(min_count=0), ("min_count", "not 0")),
        (lambda: _fit(pl.DataFrame({"a": [[1]]}), ("a",), ()), ("'a'", "List(Int64)")),
        (lambda: _fit(pl.DataFrame({"a": [[1]]}), (), ("a",)), ("'a'", "List(Int64)")),
        (
            lambda: _fit(FRAME, ("age",), ()).transform(pl.DataFrame({"age": ["1", "abc"]}), source="new.csv"),
            ("row 1", "new.csv", "column age", "'abc'"),
        ),
        (
            lambda: _fit(FRAME, ("age",), ()).transform(FRAME.drop("age"), source="new.csv"),
            ("new.csv", "'age'"),
        ),
        (lambda: FeatureEncoder.from_dict({"numeric": []}), ("'categorical'",)),
        (lambda: encoder_from_dict([]), ("list",)),
        (lambda: encoder_from_dict({"kind": "other"}), ("'other'", "columns")),
        (lambda: encoder_from_dict(_fit().to_dict() | {"unknown": "ignore"}), ("'ignore'",)),
    ],
)
def test_errors(call, mentioned):
    with refused(*mentioned):
        call()
