"""Loaders against torch's own collation and plain counting."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_rows import Pairs, Rows, arrays, found_ids, ids, tensors
from small_training import refused
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.loaders import BatchLoader, OuterStream, shuffling, union_loader
from tgeokd.data.sampler import BlockShuffle
from tgeokd.utils.errors import InputError

# ---- shuffling by blocks


def order_of(size, block_size, seed=0, window=16):
    return list(BlockShuffle(size, block_size, torch.Generator().manual_seed(seed), window))


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 5), st.integers(0, 1000))
def test_a_block_shuffle_is_a_permutation_that_reads_few_blocks_at_a_time(size, block_size, window, seed):
    order = order_of(size, block_size, seed, window)
    assert sorted(order) == list(range(size))
    assert len(BlockShuffle(size, block_size, None, window)) == size
    assert order == order_of(size, block_size, seed, window)
    blocks = [row // block_size for row in order]
    first = {block: blocks.index(block) for block in set(blocks)}
    last = {block: size - 1 - blocks[::-1].index(block) for block in set(blocks)}
    for i in range(size):
        assert sum(first[block] <= i <= last[block] for block in first) <= window


def test_a_block_shuffle_mixes_blocks_and_rows():
    order = order_of(1000, 10, window=4)
    windows = [{row // 10 for row in order[k : k + 40]} for k in range(0, 1000, 40)]
    assert all(len(blocks) == 4 for blocks in windows)
    assert any(max(blocks) - min(blocks) > 3 for blocks in windows)  # the blocks of a window are not neighbours
    assert any(abs(a - b) != 1 for a, b in pairwise(order))
    assert order != order_of(1000, 10, seed=1, window=4)


def test_every_pass_has_another_order_and_the_seed_decides_them():
    def passes(generator):
        torch.manual_seed(5)
        sampler = BlockShuffle(60, 7, generator and torch.Generator().manual_seed(1), window=2)
        return [tuple(sampler) for _ in range(3)]

    for generator in (True, None):  # None: torch's own seed
        assert len(set(passes(generator))) == 3
        assert passes(generator) == passes(generator)


def test_a_block_of_no_rows_is_refused():
    with refused("block_size", 0):
        BlockShuffle(3, 0, None)


def test_only_data_sets_in_blocks_are_shuffled_by_blocks():
    assert isinstance(shuffling(Pairs(9, block_size=4))["sampler"], BlockShuffle)
    assert shuffling(Pairs(9)) == {"shuffle": True, "generator": None}


# ---- union_loader


@pytest.mark.parametrize(
    ("train", "held"),
    [
        (lambda: DataLoader(arrays(13), 4, shuffle=True), lambda: DataLoader(arrays(6, 13), 6)),
        (
            lambda: DataLoader(TensorDataset(*tensors(13)), 4, shuffle=True),
            lambda: DataLoader(TensorDataset(*tensors(6, 13)), 6),
        ),
        (lambda: DataLoader(arrays(13), 4, shuffle=True), lambda: DataLoader(TensorDataset(*tensors(6, 13)), 6)),
        (lambda: DataLoader(TensorDataset(*tensors(13)), 4, shuffle=True), lambda: DataLoader(arrays(6, 13), 6)),
    ],
    ids=["arrays", "tensors", "arrays+tensors", "tensors+arrays"],
)
def test_union_has_each_sample_exactly_once_an_epoch(train, held):
    torch.manual_seed(0)
    loader = union_loader(train(), held())
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
        with refused("outer='union'", "outer='holdout'"):
            union_loader(*pair)


def test_union_with_a_batch_sampler_is_refused():
    dataset = TensorDataset(*tensors(12))
    train = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 4, drop_last=False))
    with refused("outer='union'"):
        union_loader(train, DataLoader(TensorDataset(*tensors(4, 12)), 2))


def test_union_with_a_sampler_of_the_user_is_refused():
    dataset = TensorDataset(*tensors(12))
    train = DataLoader(dataset, 4, sampler=WeightedRandomSampler(torch.tensor([1.0] * 4 + [0.0] * 8), 12))
    with refused("WeightedRandomSampler"):
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
def test_a_batch_size_is_refused_for_a_source_that_cannot_be_rebatched(source):
    with refused("outer_batch_size"):
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
    with refused("outer_batch_size", size):
        OuterStream(DataLoader(TensorDataset(*tensors(6)), 2), size, 0)


# ---- both with ids and with data sets in blocks


@pytest.mark.parametrize("block_size", [None, 4])
def test_union_of_batches_with_ids(block_size):
    train = Pairs(13, block_size=block_size)
    loader = union_loader(DataLoader(train, 4, **shuffling(train)), DataLoader(Pairs(6, 13), 6))
    torch.manual_seed(0)
    orders = [found_ids(loader) for _ in range(3)]
    assert all(sorted(order) == list(range(19)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


class Blocks(Dataset):
    """A data set of the user's that keeps its blocks when another is joined to it."""

    block_size = 5

    def __init__(self, n, start=0):
        self.rows = list(range(start, start + n))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return torch.tensor([float(self.rows[i])]), self.rows[i] % 3, self.rows[i]

    def join(self, other):
        both = Blocks(0)
        both.rows = self.rows + other.rows
        return both


def test_union_goes_by_blocks_where_the_joined_data_set_has_them():
    train = Blocks(200)
    generator = torch.Generator().manual_seed(3)
    loader = union_loader(DataLoader(train, 8, **shuffling(train, generator)), DataLoader(Blocks(50, 200), 8))
    assert isinstance(loader.sampler, BlockShuffle)
    assert loader.generator is generator
    order = [int(name) for _, _, names in loader for name in names]
    assert sorted(order) == list(range(250))
    assert len({row // 5 for row in order[:80]}) == 16  # the first window


@pytest.mark.parametrize("block_size", [None, 4])
def test_outer_batches_with_ids(block_size):
    source = DataLoader(Pairs(12, block_size=block_size), 4)

    def order(seed, epoch):
        torch.rand(3)
        return found_ids(drawn(OuterStream(source, 5, seed), epoch, 4))

    found = order(0, 1)
    assert found == order(0, 1)
    assert len(found) == 20
    assert [len(set(found[k : k + 10])) for k in (0, 10)] == [10, 10]
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_outer_batches_by_blocks_leave_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn(OuterStream(DataLoader(Pairs(12, block_size=4), 4), 5, 0), 0, 7)
    assert torch.equal(torch.get_rng_state(), before)


# ---- BatchLoader


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    order=st.sampled_from(["kept", "shuffled", "own generator", "blocks"]),
    drop_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_batches_order_and_draws_are_those_of_torch_s_loader(n, batch_size, order, drop_last, seed):
    def passes(kind):
        data = Pairs(n, block_size=3)
        generator = torch.Generator().manual_seed(seed) if order == "own generator" else None
        options = {"shuffle": order != "kept", "generator": generator}
        if order == "blocks":
            options = {"sampler": BlockShuffle(n, 3, None, window=2)}
        torch.manual_seed(seed)
        loader = kind(data, batch_size, drop_last=drop_last, **options)
        found = [[[part.tolist() for part in (*x, y, names)] for x, y, names in loader] for _ in range(2)]
        assert len(loader) == len(found[0])
        states = [g.get_state() for g in (torch.default_generator, generator) if g is not None]
        return found, [state.numpy().tobytes() for state in states]

    assert passes(BatchLoader) == passes(DataLoader)


class Odd(ArrayDataset):
    """Counts the batches that are fetched by a list of row numbers."""

    listed = 0

    def __getitems__(self, indices):
        self.listed += 1
        return super().__getitems__(indices)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": WeightedRandomSampler(torch.tensor([1.0, 2.0, 0.0, 1.0]), 6)},
        {"sampler": RandomSampler(range(4), replacement=True, num_samples=6)},
        {"sampler": RandomSampler(range(4), num_samples=2)},
        {"batch_sampler": BatchSampler(SequentialSampler(range(4)), 3, drop_last=False)},
        {"batch_size": 2, "collate_fn": lambda batch: [part + 1 for part in batch[0]]},
    ],
    ids=["weighted", "replacement", "fewer", "batch sampler", "collation"],
)
def test_samplers_and_collations_of_the_user_are_left_to_torch(options):
    data = Odd(*tensors(4))
    batches = []
    for kind in (BatchLoader, DataLoader):
        torch.manual_seed(0)
        batches.append([[part.tolist() for part in batch] for batch in kind(data, **options)])
    assert batches[0] == batches[1]
    assert data.listed >= 2


def test_no_list_of_rows_is_made_where_none_is_needed():
    data = Odd(*tensors(9))
    for loader in (
        BatchLoader(data, 4),
        BatchLoader(data, 4, shuffle=True),
        union_loader(DataLoader(data, 4), DataLoader(data)),
    ):
        list(loader)
    stream = OuterStream(DataLoader(data, 4), 3, 0)
    drawn(stream, 0, 4)
    assert data.listed == 0


def test_a_data_set_of_the_users_is_left_to_torch():
    assert [y.tolist() for _, y in BatchLoader(Rows(5), 3)] == [[0, 1, 2], [0, 1]]


def test_batches_are_copies():
    data = arrays(4)
    for x, _ in BatchLoader(data, 4):
        x.zero_()
    assert torch.equal(data.inputs, tensors(4)[0])


@pytest.mark.parametrize(("batch_size", "limit", "size"), [(None, 3, 3), (None, 30, 8), (None, None, 8), (5, 3, 5)])
def test_the_outer_batch_is_limited_unless_its_size_is_given(batch_size, limit, size):
    source = DataLoader(ArrayDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64)), 8)
    stream = OuterStream(source, batch_size, seed=0, limit=limit)
    stream.start_epoch(0)
    assert len(next(stream)[1]) == size


def test_the_limit_does_not_apply_to_a_source_that_cannot_be_rebatched():
    stream = OuterStream([(torch.zeros(8, 2), torch.zeros(8))], None, seed=0, limit=3)
    stream.start_epoch(0)
    assert len(next(stream)[1]) == 8


# ---- the position within an epoch


@given(batches=st.integers(0, 9), more=st.integers(1, 5), epoch=st.integers(0, 3), seed=st.integers(0, 100))
def test_a_restored_stream_continues_with_the_next_batch(batches, more, epoch, seed):
    def stream():
        return OuterStream(DataLoader(arrays(14), 4), None, seed)

    whole = stream()
    drawn(whole, epoch, batches)
    state = whole.state_dict()
    expected = ids([next(whole) for _ in range(more)])
    resumed = stream()
    drawn(resumed, 1, 2)
    resumed.load_state_dict(state)
    assert ids([next(resumed) for _ in range(more)]) == expected
    assert resumed.state_dict() == whole.state_dict()


def test_samples_of_another_form_are_not_mixed():
    x, y = torch.zeros(4, 2), torch.arange(4)
    weighted, plain = DataLoader(TensorDataset(x, y, torch.rand(4)), 2), DataLoader(TensorDataset(x, y), 2)
    with pytest.raises(InputError, match=r"union.*3.*2"):
        union_loader(weighted, plain)
