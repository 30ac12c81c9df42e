"""What a loader may yield, and what is refused."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import refused
from torch.utils.data import DataLoader

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.batch import Batch
from tgeokd.utils.errors import InputError

INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
OTHERS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.complex64]

inputs = st.sampled_from(
    [
        torch.zeros(3, 2),
        [torch.zeros(3, 2), torch.ones(3)],
        (torch.zeros(3, 2), torch.ones(3)),
        {"left": torch.zeros(3), "right": torch.ones(3)},
    ]
)
target = torch.tensor([0, 2, 1])
integer_ids = st.sampled_from(INTEGERS).map(lambda dtype: torch.tensor([5, 7, 6], dtype=dtype))
other_ids = st.one_of(
    st.sampled_from(OTHERS).map(lambda dtype: torch.ones(3, dtype=dtype)),
    st.sampled_from([torch.ones(3, 1, dtype=torch.int64), torch.tensor(3)]),
    st.sampled_from([[1, 2, 3], ["a", "b", "c"], np.arange(3), 3, {"id": torch.arange(3)}]),
)
sequences = st.sampled_from([tuple, list])


# ---- accepted


@given(inputs, sequences)
def test_pairs(x, kind):
    batch = Batch.parse(kind([x, target]))
    assert batch.inputs is x
    assert batch.target is target
    assert batch.ids is None
    assert len(batch) == 3


@given(inputs, sequences, integer_ids)
def test_triples_with_integer_ids(x, kind, ids):
    batch = Batch.parse(kind([x, target, ids]))
    assert batch.inputs is x
    assert batch.target is target
    assert batch.ids is ids


def test_a_third_element_of_none_stands_for_no_ids():
    assert Batch.parse((torch.zeros(3, 2), target, None)).ids is None


@given(
    names=st.sets(st.sampled_from(["input_ids", "attention_mask", "token_type_ids", "pixel_values", "x"]), min_size=1),
    kind=st.sampled_from([dict, OrderedDict, UserDict, MappingProxyType]),
    ids=st.none() | integer_ids,
)
def test_mappings_with_labels(names, kind, ids):
    entries = {name: torch.zeros(3) for name in names}
    item = kind({**entries, "labels": target} | ({} if ids is None else {"ids": ids}))
    batch = Batch.parse(item)
    assert batch.inputs.keys() == names
    assert all(batch.inputs[name] is entries[name] for name in names)
    assert batch.target is target
    assert batch.ids is ids
    assert "labels" in item  # what the loader yielded is left as it is


def test_a_batch_is_returned_as_it_is():
    batch = Batch(torch.zeros(3, 2), target)
    assert Batch.parse(batch) is batch


def test_named_tuples_and_what_torchs_collation_makes_of_samples():
    named = namedtuple("Sample", "image label")
    assert Batch.parse(named(torch.zeros(3, 2), target)).target is target
    for dataset in (
        ArrayDataset(torch.zeros(3, 2), target, torch.arange(3)),
        [(torch.zeros(2), int(y), i) for i, y in enumerate(target)],
    ):
        (item,) = DataLoader(dataset, 3)
        batch = Batch.parse(item)
        assert torch.equal(batch.target, target)
        assert torch.equal(batch.ids, torch.arange(3))
    (item,) = DataLoader([{"x": torch.zeros(2), "labels": int(y)} for y in target], 3)
    assert torch.equal(Batch.parse(item).target, target)


# ---- refused


@given(inputs, sequences, other_ids)
def test_a_third_element_that_holds_no_integer_ids_is_refused(x, kind, ids):
    given_as = str(ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
    with refused("test loader", "ids", given_as):
        Batch.parse(kind([x, target, ids]), "test loader")
    with refused("test loader", "ids", given_as):
        Batch.parse({"x": x, "labels": target, "ids": ids}, "test loader")


@given(st.integers(0, 6).filter(lambda n: n not in (2, 3)), sequences)
def test_sequences_of_other_lengths_are_refused_with_their_length(length, kind):
    with refused("test loader", f"length {length}", "(inputs, target)", "labels"):
        Batch.parse(kind([target] * length), "test loader")


@given(
    st.one_of(
        st.sampled_from([torch.zeros(3, 2), np.zeros((3, 2)), None, 3, "ab", object(), {1, 2}]),
        st.text(),
        st.floats(),
    )
)
def test_other_types_are_refused_by_their_name(item):
    with refused("test loader", type(item).__name__, "(inputs, target)", "labels"):
        Batch.parse(item, "test loader")


@given(st.dictionaries(st.sampled_from(["x", "label", "target", "ids", "input_ids"]), st.just(target)))
def test_mappings_without_labels_are_refused_with_their_keys(item):
    with refused("test loader", "labels", *item):
        Batch.parse(item, "test loader")


def test_the_loader_is_named():
    with pytest.raises(InputError, match="validation loader"):
        Batch.parse(torch.zeros(3), "validation loader")
