"""Ids to rows, compared with a dictionary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.teachers.ids import IdIndex, check_repeats, first_rows
from tgeokd.utils.errors import InputError

near = st.lists(st.integers(-20, 20), min_size=1, max_size=30, unique=True)
far = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30, unique=True)


@given(st.one_of(near, far), st.data())
def test_rows_are_those_of_a_dictionary(ids, data):
    index, place = IdIndex(torch.tensor(ids)), {name: row for row, name in enumerate(ids)}
    wanted = data.draw(st.lists(st.sampled_from(ids), max_size=40))
    assert index.rows(torch.tensor(wanted, dtype=torch.int64)).tolist() == [place[name] for name in wanted]


@given(st.one_of(near, far), st.one_of(st.integers(-25, 25), st.integers(-(2**63), 2**63 - 1)))
def test_an_unknown_id_is_named(ids, other):
    index = IdIndex(torch.tensor(ids), "the table")
    if other in ids:
        assert index.rows(torch.tensor([other])).tolist() == [ids.index(other)]
    else:
        with pytest.raises(InputError, match=rf"the table.* sample {other};.* {len(ids)} samples"):
            index.rows(torch.tensor([ids[0], other]))


@pytest.mark.parametrize("ids", [torch.tensor([7.0]), torch.tensor([[7]]), torch.tensor(7), torch.tensor([True])])
def test_ids_of_another_type_or_shape_are_refused(ids):
    with pytest.raises(InputError, match=str(ids.dtype)):
        IdIndex(ids)
    with pytest.raises(InputError, match=str(ids.dtype)):
        IdIndex(torch.tensor([7])).rows(ids)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_first_rows_are_those_of_list_index(ids):
    rows, first = first_rows(torch.tensor(ids))
    assert first.tolist() == [ids.index(name) for name in ids]
    assert rows.tolist() == sorted({ids.index(name) for name in ids})


def test_repeated_samples_may_differ_by_rounding_only():
    ids, first = torch.tensor([4, 9]), torch.tensor([[100.0, 0.0], [0.5, 0.0]])
    check_repeats(ids, first + torch.tensor([[0.9, 0.0], [0.009, 0.0]]), first)
    with pytest.raises(InputError, match=r"id 9 .*0\.02"):
        check_repeats(ids, first + torch.tensor([[0.9, 0.0], [0.02, 0.0]]), first)
