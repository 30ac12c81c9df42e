"""Data sets held in tensors, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_rows import Pairs, Rows, arrays, found_ids, ids, tensors
from small_training import refused
from torch.utils.data import DataLoader, TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.datasets import joined, subset
from tgeokd.data.loaders import resident


@given(st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_array_batches_equal_torchs_own(n, batch_size, drop_last):
    ours = list(DataLoader(arrays(n), batch_size, drop_last=drop_last))
    theirs = list(DataLoader(TensorDataset(*tensors(n)), batch_size, drop_last=drop_last))
    assert len(ours) == len(theirs)
    for (x, y), (x2, y2) in zip(ours, theirs, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_shuffled_array_batches_equal_torchs_own_for_the_same_seed():
    orders = []
    for dataset_loader in (
        lambda: DataLoader(arrays(20), 6, shuffle=True),
        lambda: DataLoader(TensorDataset(*tensors(20)), 6, shuffle=True),
    ):
        torch.manual_seed(0)
        orders.append(ids(dataset_loader()))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(20))
    assert orders[0] != list(range(20))


def test_array_dataset_is_a_usual_data_set():
    dataset = arrays(4, start=7)
    assert len(dataset) == 4
    x, y = dataset[2]
    assert x.tolist() == [9.0, 9.0]
    assert int(y) == 0


def test_rows_must_match():
    with refused("inputs", 3, 2):
        ArrayDataset(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_array_dataset_works_in_a_plain_loader():
    assert ids(DataLoader(arrays(8), 4)) == list(range(8))


@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_of_tuples_with_ids(n, batch_size):
    batches = list(DataLoader(Pairs(n), batch_size))
    assert found_ids(batches) == list(range(n))
    assert [len(y) for _, y, _ in batches] == [batch_size] * (n // batch_size) + (
        [n % batch_size] if n % batch_size else []
    )


def test_a_sample_of_tuples_with_an_id():
    (a, b), y, name = Pairs(4, start=7)[2]
    assert (a.tolist(), b.tolist(), int(y), int(name)) == ([9.0, 9.0], [90], 0, 109)


@pytest.mark.parametrize(
    ("inputs", "names", "values"),
    [
        ((torch.zeros(2, 1), torch.zeros(3, 1)), None, ["inputs", 3, 2]),
        ((torch.zeros(2, 1),), torch.zeros(1, dtype=torch.int64), ["ids", 1, 2]),
    ],
)
def test_every_tensor_must_have_the_rows_of_the_target(inputs, names, values):
    with refused(*values):
        ArrayDataset(inputs, torch.zeros(2, dtype=torch.int64), names)


def test_the_transform_sees_each_batch_as_a_whole_and_changes_inputs_alone():
    seen = []

    def double(x):
        seen.append(len(x))
        return 2 * x

    dataset = ArrayDataset(*tensors(7), torch.arange(7), double)
    batches = list(DataLoader(dataset, 3))
    assert seen == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _, _ in batches]), 2 * tensors(7)[0])
    assert torch.equal(torch.cat([names for _, _, names in batches]), torch.arange(7))
    assert torch.equal(dataset.inputs, tensors(7)[0])  # what is held is left alone
    assert dataset[3][0].tolist() == [6.0, 6.0]


def test_joined_samples_get_the_transform_of_the_first_data_set():
    train = Pairs(4, transform=lambda parts: (parts[0] + 1000, parts[1]))
    held = Pairs(3, 4, transform=lambda parts: (parts[0] + 5, parts[1]))
    ((a, b), y, names), *_ = DataLoader(joined(train, held), 7)
    assert a[:, 0].tolist() == [1000.0 + i for i in range(7)]
    assert b[:, 0].tolist() == [10 * i for i in range(7)]
    assert y.tolist() == [i % 3 for i in range(7)]
    assert names.tolist() == [100 + i for i in range(7)]
    ((a, _), _, _), *_ = DataLoader(held, 3)
    assert a[:, 0].tolist() == [9.0, 10.0, 11.0]  # the second data set itself keeps its own


def test_data_sets_with_and_without_ids_are_joined_by_torch():
    both = joined(ArrayDataset(*tensors(2), torch.arange(2)), arrays(2, 2))
    assert len(both) == 4
    assert [len(both[i]) for i in range(4)] == [3, 3, 2, 2]


@given(st.lists(st.integers(0, 8), max_size=12))
def test_a_subset_is_these_rows_with_their_ids_and_transform(rows):
    part = subset(Pairs(9, transform=lambda parts: (parts[0] + 0.5, parts[1])), rows)
    assert isinstance(part, ArrayDataset)
    assert len(part) == len(rows)
    assert (part.ids - 100).tolist() == rows
    for i, row in enumerate(rows):
        (a, b), y, name = part[i]
        assert (a.tolist(), b.tolist(), int(y), int(name)) == ([row + 0.5] * 2, [10 * row], row % 3, 100 + row)


def test_a_subset_of_a_user_s_data_set():
    part = subset(Rows(9), [4, 0, 7])
    assert [int(part[i][0]["x"]) for i in range(3)] == [4, 0, 7]


# ---- residency


def test_a_data_set_moves_to_a_device_and_makes_its_batches_there():
    moved = Pairs(6).with_views(2).to("meta")
    (a, b), y, names = moved.fetch(torch.arange(2))
    assert {part.device.type for part in (a, b, y, names)} == {"meta"}
    assert moved.device.type == "meta"
    assert moved.views == 2


@pytest.mark.parametrize(("free", "stays"), [(10**6, False), (1000, True)])
def test_data_is_kept_on_an_accelerator_where_it_takes_less_than_half_of_the_free_memory(
    free, stays, monkeypatch, caplog
):
    data, moved = Pairs(10), Pairs(1)  # of 10 * (8 + 8 + 8 + 8) bytes
    assert data.nbytes == 320
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free if not stays else 640, 0))
    monkeypatch.setattr(ArrayDataset, "to", lambda self, device: moved)
    with caplog.at_level("INFO", "tgeokd"):
        assert resident(data, torch.device("cuda")) is (data if stays else moved)
    assert ("left in main memory" if stays else "kept on cuda") in caplog.text


def test_nothing_moves_on_the_cpu_or_where_it_cannot():
    data, listed = Pairs(3), Rows(3)
    assert resident(data, torch.device("cpu")) is data
    assert resident(listed, torch.device("cuda")) is listed
