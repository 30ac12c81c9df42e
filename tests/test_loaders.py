"""Loaders against torch's own collation and plain counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tgeokd.errors import InputError
from tgeokd.loaders import ArrayDataset, OuterStream, group, union_loader


def tensors(n, start=0):
    """Samples that can be told apart: row i holds start + i."""
    index = torch.arange(start, start + n)
    return index.float().unsqueeze(1).repeat(1, 2), index % 3


def arrays(n, start=0):
    return ArrayDataset(*tensors(n, start))


def ids(batches):
    return [int(row[0]) for x, _ in batches for row in x]


class Rows(Dataset):
    """A map-style data set of the user's, of dictionaries."""

    def __init__(self, n, start=0):
        self.n, self.start = n, start

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"x": torch.tensor([float(self.start + i)])}, (self.start + i) % 3


# ---- ArrayDataset


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
    with pytest.raises(InputError, match="inputs have 3 rows but target has 2"):
        ArrayDataset(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_array_dataset_works_in_a_plain_loader():
    assert ids(DataLoader(arrays(8), 4)) == list(range(8))


# ---- union_loader


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (lambda: DataLoader(arrays(13), 4), lambda: DataLoader(arrays(6, 13), 6)),
        (lambda: DataLoader(TensorDataset(*tensors(13)), 4), lambda: DataLoader(TensorDataset(*tensors(6, 13)), 6)),
        (lambda: DataLoader(arrays(13), 4), lambda: DataLoader(TensorDataset(*tensors(6, 13)), 6)),
        (lambda: DataLoader(TensorDataset(*tensors(13)), 4), lambda: DataLoader(arrays(6, 13), 6)),
    ],
    ids=["arrays", "tensors", "arrays+tensors", "tensors+arrays"],
)
def test_union_has_each_sample_exactly_once_an_epoch(train, held_out):
    torch.manual_seed(0)
    loader = union_loader(train(), held_out())
    orders = [ids(loader) for _ in range(3)]
    for order in orders:
        assert sorted(order) == list(range(19))
    assert len({tuple(order) for order in orders}) == 3  # reshuffled
    assert {len(y) for _, y in loader} == {4, 3}
    for x, y in loader:
        assert (x[:, 0].long() % 3 == y).all()  # inputs and labels stay together


def test_union_of_a_users_data_sets_keeps_their_collation():
    def collate(samples):
        return {"x": torch.stack([x["x"] for x, _ in samples])}, torch.tensor([y for _, y in samples])

    loader = union_loader(DataLoader(Rows(5), 3, collate_fn=collate), DataLoader(Rows(4, 5), 2))
    found = sorted(int(v) for x, _ in loader for v in x["x"].flatten())
    assert found == list(range(9))


def test_union_takes_batch_size_drop_last_and_generator_from_the_training_loader():
    orders = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        train = DataLoader(TensorDataset(*tensors(9)), 4, shuffle=True, drop_last=True, generator=generator)
        loader = union_loader(train, DataLoader(TensorDataset(*tensors(2, 9)), 2))
        torch.rand(1)
        orders.append(ids(loader))
        assert loader.generator is generator
    assert orders[0] == orders[1]
    assert len(orders[0]) == 8


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*tensors(6), strict=True))


@pytest.mark.parametrize("other", [lambda: [tensors(4)], lambda: DataLoader(Stream(), 2), lambda: iter([tensors(4)])])
def test_union_of_what_cannot_be_mixed_is_refused(other):
    usual = DataLoader(TensorDataset(*tensors(6)), 2)
    for pair in ((usual, other()), (other(), usual)):
        with pytest.raises(InputError, match="outer='union' must mix two torch DataLoaders over map-style data sets"):
            union_loader(*pair)


def test_union_with_a_batch_sampler_is_refused_or_keeps_its_batches():
    dataset = TensorDataset(*tensors(12))
    train = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 4, drop_last=False))
    try:
        loader = union_loader(train, DataLoader(TensorDataset(*tensors(4, 12)), 2))
    except InputError:
        return
    assert {len(y) for _, y in loader} == {4}


def test_union_with_a_sampler_is_refused():
    dataset = TensorDataset(*tensors(12))
    train = DataLoader(dataset, 4, sampler=WeightedRandomSampler(torch.tensor([1.0] * 4 + [0.0] * 8), 12))
    with pytest.raises(InputError, match="sampler"):
        union_loader(train, DataLoader(TensorDataset(*tensors(4, 12)), 2))


def test_union_of_a_list_and_a_data_set():
    listed = DataLoader(list(zip(*tensors(5), strict=True)), 3)
    assert sorted(ids(union_loader(listed, DataLoader(TensorDataset(*tensors(4, 5)), 2)))) == list(range(9))


# ---- OuterStream


def drawn(stream, epoch, count):
    stream.start_epoch(epoch)
    return [next(stream) for _ in range(count)]


def test_outer_order_depends_on_seed_and_epoch_alone():
    source = DataLoader(TensorDataset(*tensors(12)), 4)

    def order(seed, epoch, before=()):
        stream = OuterStream(source, None, seed)
        for earlier in before:
            drawn(stream, earlier, 5)
        torch.rand(3)  # the global state must not matter
        return ids(drawn(stream, epoch, 6))

    assert order(0, 2) == order(0, 2) == order(0, 2, before=[0, 1])
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_outer_stream_does_not_touch_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream = OuterStream(DataLoader(TensorDataset(*tensors(12)), 4, shuffle=True), None, seed=1)
    for epoch in range(2):
        drawn(stream, epoch, 7)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_a_pass_covers_all_samples_and_passes_go_on(batch_size, batches, seed):
    n = batch_size * batches
    stream = OuterStream(DataLoader(arrays(n), 3), batch_size, seed)
    found = drawn(stream, 0, 3 * batches)
    assert all(len(y) == batch_size for _, y in found)
    for k in range(3):
        assert sorted(ids(found[k * batches : (k + 1) * batches])) == list(range(n))
    if n > 5:
        assert ids(found[:batches]) != ids(found[batches : 2 * batches])


def test_batches_are_never_short_and_a_pass_repeats_nothing():
    stream = OuterStream(DataLoader(TensorDataset(*tensors(10)), 4), None, 0)
    found = drawn(stream, 0, 6)
    assert [len(y) for _, y in found] == [4] * 6
    for k in range(3):
        assert len(set(ids(found[2 * k : 2 * k + 2]))) == 8


def test_a_batch_larger_than_the_data_is_all_of_it():
    found = drawn(OuterStream(DataLoader(TensorDataset(*tensors(5)), 2), 100, 0), 0, 2)
    assert [sorted(ids([batch])) for batch in found] == [list(range(5))] * 2


def test_the_source_keeps_its_own_batches():
    source = DataLoader(TensorDataset(*tensors(12)), 4)
    drawn(OuterStream(source, 2, 0), 0, 3)
    assert ids(source) == list(range(12))
    assert source.batch_size == 4


@pytest.mark.parametrize("source", [lambda: [tensors(2), tensors(3, 2)], lambda: DataLoader(Stream(), 2)])
def test_any_other_iterable_is_repeated_as_it_is(source):
    stream = OuterStream(source(), None, 0)
    once = ids(source())
    batches = len(list(source()))
    assert ids(drawn(stream, 0, 2 * batches)) == once * 2
    assert ids(drawn(stream, 1, 1)) == ids([next(iter(source()))])  # a new epoch starts at the front


@pytest.mark.parametrize("source", [lambda: [tensors(2)], lambda: DataLoader(Stream(), 2)])
def test_what_cannot_be_re_batched_takes_no_batch_size(source):
    with pytest.raises(InputError, match="outer_batch_size needs a torch DataLoader over a map-style data set"):
        OuterStream(source(), 4, 0)


class SizedStream(Stream):
    def __len__(self):
        return 6


def test_an_iterable_data_set_with_a_length_is_repeated_as_it_is():
    assert ids(drawn(OuterStream(DataLoader(SizedStream(), 2), None, 0), 0, 3)) == list(range(6))


def test_repeating_a_loader_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    drawn(OuterStream(DataLoader(Stream(), 2), None, 0), 0, 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, -3])
def test_outer_batches_of_no_samples_are_refused(size):
    with pytest.raises(InputError, match="outer_batch_size must be >= 1"):
        OuterStream(DataLoader(TensorDataset(*tensors(6)), 2), size, 0)


# ---- group


@given(st.integers(0, 20), st.integers(1, 6))
def test_groups_keep_the_order_and_only_the_last_is_short(n, size):
    groups = list(group(iter(range(n)), size))
    assert [item for part in groups for item in part] == list(range(n))
    assert all(len(part) == size for part in groups[:-1])
    assert all(1 <= len(part) <= size for part in groups)


def test_groups_are_read_no_further_than_needed():
    read = []

    def batches():
        for i in range(4):
            read.append(i)
            yield i

    groups = group(batches(), 2)
    next(groups)
    assert read == [0, 1]
