"""Which protocols the data sets of the package implement, and how any other data set is handled."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.datasets import (
    FetchesBatches,
    Fingerprinted,
    HasViews,
    Joinable,
    StoredInBlocks,
    Subsettable,
    joined,
    parts_of,
    set_view,
    subset,
    views_of,
)

PLAIN = TensorDataset(torch.arange(5.0)[:, None], torch.arange(5))


def arrays(n=5):
    return ArrayDataset(torch.arange(float(n))[:, None], torch.arange(n), torch.arange(n))


@pytest.mark.parametrize("protocol", [FetchesBatches, Fingerprinted, HasViews, Joinable, Subsettable])
def test_arrays_implement_a_protocol_that_a_plain_data_set_does_not(protocol):
    assert isinstance(arrays(), protocol)
    assert not isinstance(PLAIN, protocol)


def test_a_protocol_is_recognised_by_its_members():
    class Own(TensorDataset):
        block_size = 2

    own = Own(*PLAIN.tensors)
    assert isinstance(own, StoredInBlocks)
    assert not isinstance(own, FetchesBatches)


def test_plain_data_sets_are_wrapped():
    both, some = joined(PLAIN, arrays()), subset(PLAIN, [3, 1])
    assert isinstance(both, ConcatDataset)
    assert isinstance(some, Subset)
    assert [int(sample[1]) for sample in some] == [3, 1]
    assert [int(both[i][1]) for i in range(len(both))] == [*range(5), *range(5)]


def test_arrays_stay_arrays():
    both, some = joined(arrays(), arrays(2)), subset(arrays(), [3, 1])
    assert isinstance(both, ArrayDataset)
    assert isinstance(some, ArrayDataset)
    assert both.target.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert some.ids.tolist() == [3, 1]


def test_the_parts_of_wrapped_data_sets():
    first, second = arrays(), PLAIN
    assert parts_of(ConcatDataset([Subset(first, [0]), ConcatDataset([second, first])])) == [first, second, first]
    assert parts_of(first) == [first]


def test_views_of_a_plain_data_set():
    assert views_of(DataLoader(PLAIN)) is None
    set_view(DataLoader(PLAIN), 3)
