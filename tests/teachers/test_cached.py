"""A cached teacher by itself; tests/training/test_cache_teacher.py has it in a training run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import TrainTransform
from tgeokd.data.batch import Batch
from tgeokd.data.datasets import set_view
from tgeokd.teachers import CachedTeacher, TeacherCache, TeacherCacheOptions, as_teacher
from tgeokd.utils.errors import InputError

N, C = 20, 3


class Queries:
    """A teacher that records how many samples it is queried for."""

    def __init__(self):
        self.samples = 0

    def __call__(self, x):
        self.samples += len(x)
        return x.flatten(1)[:, :C]


def dataset(transform=None, first=0):
    x = torch.randint(0, 256, (N, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(first))
    inputs = x if transform is not None else x.float()
    return ArrayDataset(inputs, torch.arange(N) % C, torch.arange(first, first + N), transform)


def cached(queries, *, folder=None, **options):
    options = TeacherCacheOptions(dtype="fp32", **options)
    return CachedTeacher(as_teacher(queries), options, folder, precision="32-true", move=lambda batch: batch)


def test_a_stored_loader_is_read_and_another_one_queried():
    queries = Queries()
    teacher, loader, other = cached(queries), DataLoader(dataset(), 8), DataLoader(dataset(first=100), 8)
    teacher.store("train", loader, C)
    stored = queries.samples
    for item in loader:
        batch = Batch.parse(item)
        assert torch.equal(teacher.of(loader).logits(batch), batch.inputs.flatten(1)[:, :C])
    assert queries.samples == stored == N
    batch = Batch.parse(next(iter(other)))
    assert torch.equal(teacher.of(other).logits(batch), teacher.logits(batch))
    assert queries.samples == N + 16
    with pytest.raises(InputError, match="ids"):
        teacher.of(loader).logits(Batch(batch.inputs, batch.target))
    teacher.close()


def test_a_bound_teacher_follows_the_epochs():
    teacher = cached(Queries(), views=3)
    loader = teacher.viewed(DataLoader(dataset(TrainTransform((0.5,), (0.25,), padding=1)), 8), epochs=9)
    teacher.store("train", loader, C)
    bound = teacher.of(loader)
    for epoch in range(5):
        teacher.start_epoch(epoch)
        set_view(loader, epoch % 3)
        for item in loader:
            batch = Batch.parse(item)
            assert torch.equal(bound.logits(batch), batch.inputs.flatten(1)[:, :C])
    teacher.close()


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_folders_have_the_names_of_splits(tmp_path, split):
    teacher = CachedTeacher(
        as_teacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, C))),
        TeacherCacheOptions(),
        tmp_path,
        precision="32-true",
        move=lambda batch: batch,
    )
    teacher.store(split, DataLoader(dataset(), 8), C)
    assert len(TeacherCache(tmp_path / split)) == N
