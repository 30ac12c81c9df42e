"""Loaders against torch's own collation and plain counting."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from tgeokd.data.datasets import joined, subset
from tgeokd.data.loaders import BatchLoader, OuterStream, group, resident, shuffling, union_loader
from tgeokd.data.sampler import BlockShuffle
from tgeokd.utils.errors import InputError


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


class Pairs(ArrayDataset):
    """Samples of two tensors with ids, kept in blocks; row i holds start + i in both, and its id is 100 + start + i."""

    def __init__(self, n, start=0, transform=None, block_size=None):
        x, y = tensors(n, start)
        super().__init__((x, (x[:, :1] * 10).long()), y, torch.arange(start, start + n) + 100, transform)
        if block_size is not None:
            self.block_size = block_size


def found_ids(batches):
    """Ids of batches of ``Pairs``, each checked to belong to its inputs and label."""
    found = []
    for (a, b), y, names in batches:
        assert names.dtype == torch.int64
        assert torch.equal(a[:, 0].long() + 100, names)
        assert torch.equal(b[:, 0], 10 * (names - 100))
        assert torch.equal(y, (names - 100) % 3)
        found += (names - 100).tolist()
    return found


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
    ("inputs", "names", "message"),
    [
        ((torch.zeros(2, 1), torch.zeros(3, 1)), None, "inputs have 3 rows but target has 2"),
        ((torch.zeros(2, 1),), torch.zeros(1, dtype=torch.int64), "ids have 1 rows but target has 2"),
    ],
)
def test_every_part_must_have_the_target_s_rows(inputs, names, message):
    with pytest.raises(InputError, match=message):
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


def test_joined_held_out_samples_get_the_training_transform_and_only_it():
    train = Pairs(4, transform=lambda parts: (parts[0] + 1000, parts[1]))
    held_out = Pairs(3, 4, transform=lambda parts: (parts[0] + 5, parts[1]))
    ((a, b), y, names), *_ = DataLoader(joined(train, held_out), 7)
    assert a[:, 0].tolist() == [1000.0 + i for i in range(7)]
    assert b[:, 0].tolist() == [10 * i for i in range(7)]
    assert y.tolist() == [i % 3 for i in range(7)]
    assert names.tolist() == [100 + i for i in range(7)]
    ((a, _), _, _), *_ = DataLoader(held_out, 3)
    assert a[:, 0].tolist() == [9.0, 10.0, 11.0]  # the held-out set itself keeps its own


def test_arrays_with_and_without_ids_are_joined_as_torch_does():
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
    with pytest.raises(InputError, match="block_size must be >= 1, not 0"):
        BlockShuffle(3, 0, None)


def test_only_data_sets_in_blocks_are_shuffled_by_blocks():
    assert isinstance(shuffling(Pairs(9, block_size=4))["sampler"], BlockShuffle)
    assert shuffling(Pairs(9)) == {"shuffle": True, "generator": None}


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


# ---- both with ids and with data sets in blocks


@pytest.mark.parametrize("block_size", [None, 4])
def test_union_of_three_part_batches(block_size):
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
def test_outer_batches_of_three_parts(block_size):
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
    """Says which way its samples were fetched."""

    asked = 0

    def __getitems__(self, indices):
        self.asked += 1
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
def test_what_the_user_brings_is_left_to_torch(options):
    data = Odd(*tensors(4))
    batches = []
    for kind in (BatchLoader, DataLoader):
        torch.manual_seed(0)
        batches.append([[part.tolist() for part in batch] for batch in kind(data, **options)])
    assert batches[0] == batches[1]
    assert data.asked >= 2


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
    assert data.asked == 0


def test_a_data_set_of_the_user_s_is_left_to_torch():
    assert [y.tolist() for _, y in BatchLoader(Rows(5), 3)] == [[0, 1, 2], [0, 1]]


def test_batches_are_copies():
    data = arrays(4)
    for x, _ in BatchLoader(data, 4):
        x.zero_()
    assert torch.equal(data.inputs, tensors(4)[0])


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


@pytest.mark.parametrize(("batch_size", "most", "size"), [(None, 3, 3), (None, 30, 8), (None, None, 8), (5, 3, 5)])
def test_the_outer_batch_has_at_most_so_many_samples_unless_its_size_is_asked_for(batch_size, most, size):
    source = DataLoader(ArrayDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64)), 8)
    stream = OuterStream(source, batch_size, seed=0, most=most)
    stream.start_epoch(0)
    assert len(next(stream)[1]) == size


def test_a_source_that_cannot_be_batched_anew_is_taken_as_it_is():
    stream = OuterStream([(torch.zeros(8, 2), torch.zeros(8))], None, seed=0, most=3)
    stream.start_epoch(0)
    assert len(next(stream)[1]) == 8
