from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from criteo_rows import COLUMNS, encode, make_rows
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from tgeokd.data.base import InputSpec
from tgeokd.data.tasks.criteo import CriteoEncoder
from tgeokd.data.tasks.criteo.encoder import ValueCounts

ROWS = make_rows(600, seed=1)


def frame(rows: list[list[str]]) -> pl.DataFrame:
    """As a user reads a file: everything text."""
    return pl.DataFrame({name: [row[1 + i] for row in rows] for i, name in enumerate(COLUMNS)})


def as_read(rows: list[list[str]]) -> pl.DataFrame:
    """As the reader gives it: numbers and text, null where missing."""
    text = frame(rows).with_columns(pl.all().replace("", None))
    return text.with_columns(pl.col(COLUMNS[:13]).cast(pl.Float64))


def fitted(rows: list[list[str]] = ROWS, min_count: int = 4, block: int = 100) -> CriteoEncoder:
    blocks = [as_read(rows[start : start + block]) for start in range(0, len(rows), block)]
    return CriteoEncoder.fit(blocks, min_count=min_count, max_tracked=10_000)[0]


@pytest.mark.parametrize("min_count", [1, 4, 30])
@pytest.mark.parametrize("block", [37, 600])
def test_codes_are_those_worked_out_in_plain_python(min_count, block):
    encoder = fitted(ROWS[:450], min_count, block)
    codes, vocabulary = encode(ROWS, list(range(450)), min_count)
    assert [list(encoder.values[name]) for name in COLUMNS] == vocabulary
    numeric, categorical = encoder.transform(frame(ROWS))
    assert numeric.shape == (600, 0)
    assert numeric.dtype == torch.float32
    assert categorical.dtype == torch.int64
    assert categorical.tolist() == codes
    assert encoder.inputs == InputSpec("table", (0,), tuple(len(known) + 2 for known in vocabulary))


def test_integers_by_hand():
    rows = [["0", text, *ROWS[0][2:]] for text in ("-2", "0", "1", "2", "3", "4", "5", "1000", "1000000", "")]
    encoder = fitted(rows, min_count=1)
    # log(3)^2 = 1.2, log(4)^2 = 1.9, log(5)^2 = 2.6, log(1000)^2 = 47.7, log(1e6)^2 = 190.9
    assert encoder.values["I1"] == ("b1", "-2", "0", "1", "2", "b190", "b2", "b47")  # twice, then once by name
    assert encoder.transform(frame(rows))[1][:, 0].tolist() == [3, 4, 5, 6, 2, 2, 8, 9, 7, 0]


def test_missing_and_unknown_values_have_different_codes():
    encoder = fitted()
    rows = [list(row) for row in ROWS[:3]]
    rows[0][14], rows[1][14], rows[2][14] = "", "ffffffff", encoder.values["C1"][0]
    assert encoder.transform(frame(rows))[1][:, 13].tolist() == [0, 1, 2]


def test_rows_of_a_saved_encoder_get_the_same_codes():
    encoder = fitted()
    again = CriteoEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    assert torch.equal(again.transform(frame(ROWS))[1], encoder.transform(frame(ROWS))[1])


def test_frames_as_users_have_them():
    encoder, text = fitted(), frame(ROWS)
    expected = encoder.transform(text)[1]
    typed = text.with_columns(pl.col(COLUMNS[:13]).replace("", None).cast(pl.Int64))
    nan = typed.with_columns(pl.col(COLUMNS[:13]).cast(pl.Float64).fill_null(float("nan")))
    shuffled = text.select(pl.lit(1).alias("more"), *reversed(COLUMNS))
    for other in (typed, nan, shuffled):
        assert torch.equal(encoder.transform(other)[1], expected)
    empty = text.with_columns(pl.lit(None).alias("C3"))
    assert encoder.transform(empty)[1][:, 15].eq(0).all()
    assert encoder.transform(text.clear())[1].shape == (0, 39)


@pytest.mark.parametrize(
    ("change", "mentioned"),
    [
        (lambda f: f.drop("C7"), ("new.csv", "'C7'")),
        (
            lambda f: f.with_columns(pl.lit(5).alias("C7")),
            ("column C7", "Int32"),
        ),
        (lambda f: f.with_columns(I2=pl.Series(["1", "x", *["2"] * 598])), ("row 1", "column I2", "'x'")),
        (lambda f: f.with_columns(I2=pl.Series([1.0, float("inf"), *[2.0] * 598])), ("row 1", "column I2", "inf")),
    ],
)
def test_frames_that_do_not_fit_are_refused(change, mentioned):
    with refused(*mentioned):
        fitted().transform(change(frame(ROWS)), source="new.csv")


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ([], ("'criteo'", "39")),
        ({"kind": "other", "values": {}}, ("'criteo'", "39")),
        ({"kind": "criteo", "values": {"I1": []}}, ("39",)),
        (
            {"kind": "criteo", "values": {name: ["a", "a"] for name in COLUMNS}},
            ("'I1'",),
        ),
        (
            {"kind": "criteo", "values": {name: [1] for name in COLUMNS}},
            ("'I1'",),
        ),
    ],
)
def test_something_else_than_a_saved_encoder_is_refused(content, mentioned):
    with refused(*mentioned):
        CriteoEncoder.from_dict(content)


def test_impossible_settings_are_refused():
    with refused("min_count", "not 0"):
        CriteoEncoder.fit([], min_count=0, max_tracked=10)
    with refused("max_tracked", "not 1"):
        CriteoEncoder.fit([], min_count=1, max_tracked=1)


# ---- counting in bounded memory

streams = st.lists(st.lists(st.integers(0, 60).map(lambda i: int(i**2 / 40)), max_size=60), max_size=40)


@given(stream=streams, cap=st.integers(2, 30))
def test_counts_keep_their_bound_and_their_cap(stream, cap):
    counts, true = ValueCounts(cap), Counter()
    for block in stream:
        values = [str(value) for value in block]
        counts.add(pl.Series([*values, None], dtype=pl.String))
        true.update(values)
    table = counts.counts()
    found = dict(table.iter_rows())
    assert len(found) <= cap
    assert counts.held <= 2 * cap + max(map(len, stream), default=0)
    assert all(true[v] - counts.undercount <= found.get(v, 0) <= true[v] for v in true)
    assert table["count"].to_list() == sorted(found.values(), reverse=True)
    if len(true) <= cap:
        assert counts.undercount == 0
        assert found == dict(true)


def test_frequent_values_survive_a_long_tail_of_rare_ones():
    random = np.random.default_rng(0)
    counts, cap = ValueCounts(200), 200
    frequent = [f"often{i}" for i in range(20)]
    for block in range(100):  # half of the rows are values that never come again
        rare = [f"once{block}-{i}" for i in range(100)]
        counts.add(pl.Series([*rare, *random.choice(frequent, 100)]))
    found = dict(counts.counts().iter_rows())
    assert 0 < counts.undercount < 2 * 20_000 / cap  # e of lossy counting: a share of the rows, about 1 / entries
    assert set(frequent) == {value for value, count in found.items() if count > 2 * counts.undercount}
    assert counts.held <= 2 * cap + 120
