"""Ids to rows, compared with a dictionary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.teachers.ids import IdIndex
from tgeokd.utils.errors import InputError

near = st.lists(st.integers(-20, 20), min_size=1, max_size=30, unique=True)
far = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30, unique=True)


@given(st.one_of(near, far), st.data())
def test_rows_are_those_of_a_dictionary(ids, data):
    index, place = IdIndex(torch.tensor(ids)), {name: row for row, name in enumerate(ids)}
    asked = data.draw(st.lists(st.sampled_from(ids), max_size=40))
    assert index.rows(torch.tensor(asked, dtype=torch.int64)).tolist() == [place[name] for name in asked]


@given(st.one_of(near, far), st.one_of(st.integers(-25, 25), st.integers(-(2**63), 2**63 - 1)))
def test_what_is_not_there_is_refused_by_name(ids, other):
    index = IdIndex(torch.tensor(ids), "the table")
    if other in ids:
        assert index.rows(torch.tensor([other])).tolist() == [ids.index(other)]
    else:
        with pytest.raises(InputError, match=rf"the table hold no sample {other} \(they hold {len(ids)} samples"):
            index.rows(torch.tensor([ids[0], other]))


def test_both_ways_of_finding_are_in_use():
    assert IdIndex(torch.tensor([3, 5, 4]))._table is not None
    assert IdIndex(torch.tensor([3, 5, 4_000_000]))._table is None
