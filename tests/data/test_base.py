"""The loaders of a task's splits, whatever holds them."""

from __future__ import annotations

import pytest
import torch

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.sampler import BlockShuffle


def part(n, start, transform=None):
    index = torch.arange(start, start + n)
    return ArrayDataset(index.float()[:, None], index % 2, index, transform)


def task(*, block_size=None, **options):
    train = part(20, 0, lambda x: x + 1000)
    if block_size is not None:
        train.block_size = block_size
    parts = {"train": train, "held_out": part(6, 20, lambda x: x - 0.5), "test": part(4, 26)}
    return TaskData(**parts, num_classes=2, inputs=InputSpec("array", (1,)), **options)


def read(loader):
    x, y, ids = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(y, ids % 2)
    return x[:, 0], ids.tolist()


@pytest.mark.parametrize("with_held_out", [False, True])
@pytest.mark.parametrize("block_size", [None, 3])
def test_training_batches_are_shuffled_and_all_have_the_training_transform(with_held_out, block_size):
    data = task(block_size=block_size)
    torch.manual_seed(0)
    loader = data.training_loader(8, with_held_out=with_held_out)
    orders = []
    for _ in range(3):
        x, ids = read(loader)
        assert torch.equal(x, torch.tensor(ids) + 1000.0)
        assert sorted(ids) == list(range(26 if with_held_out else 20))
        orders.append(ids)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert isinstance(loader.sampler, BlockShuffle) == (block_size is not None and not with_held_out)


def test_ordered_batches_keep_the_split_s_order_and_transform():
    data = task()
    for split, ids, shift in (
        (data.train, range(20), 1000),
        (data.held_out, range(20, 26), -0.5),
        (data.test, range(26, 30), 0),
    ):
        x, found = read(data.ordered_loader(split, 7))
        assert found == list(ids)
        assert torch.equal(x, torch.tensor(found) + float(shift))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_worker_processes_give_the_same_batches(workers):
    data = task(workers=workers)
    loader = data.ordered_loader(data.held_out, 4)
    assert (loader.num_workers, loader.persistent_workers) == (workers, workers > 0)
    assert read(loader)[1] == list(range(20, 26))
