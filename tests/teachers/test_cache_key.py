"""Hashes of data sets and of teachers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.teachers.cache.key import row_digests, samples_of, teacher_digest, transforms_of

NORMAL = ((0.5,), (0.25,))


@given(st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=40))
def test_rows_have_the_same_digest_exactly_where_they_are_equal(rows):
    digests = row_digests((torch.tensor(rows, dtype=torch.uint8),)).tolist()
    for a, first in zip(rows, digests, strict=True):
        assert [first == second for second in digests] == [a == b for b in rows]


@given(st.integers(0, 10**6), st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.int64]))
@settings(max_examples=30)
def test_every_single_bit_of_a_row_counts(seed, dtype):
    row = torch.randint(0, 100, (1, 9), generator=torch.Generator().manual_seed(seed)).to(dtype)
    raw = row.view(torch.uint8).flatten()
    flipped = raw.repeat(8 * len(raw), 1)
    for bit in range(8 * len(raw)):
        flipped[bit, bit // 8] ^= 1 << (bit % 8)
    every = torch.cat([raw[None], flipped]).view(dtype).view(-1, 9)
    assert len(row_digests((every,)).unique()) == 8 * len(raw) + 1


def test_many_rows_that_differ_in_the_high_bits_alone_do_not_collide():
    words = torch.randint(0, 256, (50_000, 4), generator=torch.Generator().manual_seed(0)) << 56
    assert len(row_digests((words,)).unique()) == len(words.unique(dim=0))


def test_a_digest_depends_on_its_row_and_the_place_of_its_tensor_alone():
    x = torch.randn(5000, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    whole, order = row_digests((x,)), torch.randperm(5000)
    assert torch.equal(row_digests((x[order],)), whole[order])
    assert torch.equal(row_digests((x[17:18],)), whole[17:18])
    a, b = torch.arange(6).view(3, 2), torch.arange(6).view(3, 2) + 1
    assert not torch.equal(row_digests((a, b)), row_digests((b, a)))


def test_samples_are_found_through_subsets_and_concatenations():
    x, y, ids = torch.arange(12).view(6, 2), torch.zeros(6, dtype=torch.int64), torch.tensor([9, 4, 7, 1, 0, 3])
    whole = ArrayDataset(x, y, ids)
    some = Subset(whole, [5, 2])
    again = samples_of(ConcatDataset([some, ArrayDataset(x[:2], y[:2], ids[:2])]))
    assert again.ids.tolist() == [3, 7, 9, 4]
    assert torch.equal(again.digests, row_digests((x[[5, 2, 0, 1]],)))
    assert samples_of(ArrayDataset(x, y)) is None
    assert samples_of(TensorDataset(x, y)) is None


def test_fixed_and_random_transforms_are_distinguished():
    x, y, ids = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    plain, random = EvalTransform(*NORMAL), TrainTransform(*NORMAL, padding=1)
    assert transforms_of(ArrayDataset(x, y, ids, plain)) == ([repr(plain)], [])
    both = ConcatDataset([ArrayDataset(x, y, ids, t) for t in (plain, random, plain)])
    assert transforms_of(Subset(both, [0])) == ([repr(plain)], [repr(random)])


def test_a_teacher_digest_depends_on_weights_buffers_and_layers_without_either():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LeakyReLU(0.1), nn.Linear(4, 2).bfloat16())
    digest = teacher_digest(teacher)
    assert teacher_digest(copy.deepcopy(teacher)) == digest

    others = [copy.deepcopy(teacher) for _ in range(3)]
    with torch.no_grad():
        others[0][3].weight[0, 0] += 1
        others[1][1].running_mean += 1
    others[2][2] = nn.LeakyReLU(0.2)
    assert len({digest, *map(teacher_digest, others)}) == 4


@pytest.mark.parametrize("teacher", [lambda x: x, torch.relu])
def test_a_callable_has_no_digest(teacher):
    assert teacher_digest(teacher) is None
