"""Augmented samples that can be named: the same version of a sample in any batch, order, process and part of the data."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from scipy.stats import chisquare
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.data.datasets import joined, set_view, subset, views_of
from tgeokd.data.loaders import BatchLoader, union_loader

MEAN, STD = (0.5,), (0.25,)
AUGMENT = TrainTransform(MEAN, STD, padding=2, seed=7)


def images(n, start=0, transform=AUGMENT, ids=True):
    pixels = (
        torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 3
        + torch.arange(n, dtype=torch.uint8)[:, None, None, None]
    )
    rows = torch.arange(start, start + n)
    return ArrayDataset(pixels, rows % 3, rows * 11 if ids else None, transform)


def by_id(batches):
    """Each sample by its id, as it came."""
    return {int(name): x for xs, _, names in batches for x, name in zip(xs, names, strict=True)}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[i], expected[i]) for i in found)


@given(st.permutations(range(12)), st.integers(1, 5), st.integers(0, 3))
def test_a_view_does_not_depend_on_batch_order_or_global_generator(order, size, view):
    data = images(12).with_views(4)
    data.set_view(view)
    expected = by_id([data.fetch(torch.arange(12))])
    torch.rand(1)
    batches = [data.fetch(torch.tensor(order[k : k + size])) for k in range(0, 12, size)]
    assert same(by_id(batches), expected)
    x, _, name = data[3]
    assert torch.equal(x, expected[int(name)])


def test_views_differ_and_come_again():
    data = images(12).with_views(3)
    seen = []
    for view in (0, 1, 2, 0):
        data.set_view(view)
        seen.append(data.fetch(torch.arange(12))[0])
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_without_views_draws_are_fresh_and_leave_that_to_the_global_generator():
    data, rows = images(12), torch.arange(12)
    assert data.views is None
    torch.manual_seed(0)
    first, second = data.fetch(rows)[0], data.fetch(rows)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(data.fetch(rows)[0], first)
    state = torch.get_rng_state()
    data.with_views(2).fetch(rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_shifts_and_mirroring_of_views_are_uniform():
    coded = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    n, padding = 6000, 2
    transform = TrainTransform((0.0,), (1 / 255,), padding, seed=3)
    result = transform.view(coded.expand(n, 1, 16, 16), torch.arange(n), 5).round().long()
    here, right = result[:, 0, 8, 7], result[:, 0, 8, 8]
    left = torch.where(here > right, right, here) % 16 - 7 + padding
    top = here // 16 - 8 + padding
    cells = (top * 5 + left) * 2 + (here > right)
    assert chisquare(np.bincount(cells, minlength=50)).pvalue > 1e-3


def test_no_view_is_mirrored_where_that_is_off_and_the_seed_counts():
    flat = dataclasses.replace(AUGMENT, padding=0, flip=False)
    data = images(9, transform=flat)
    plain = EvalTransform(MEAN, STD)(data.inputs)
    assert torch.equal(data.with_views(1).fetch(torch.arange(9))[0], plain)
    other = dataclasses.replace(AUGMENT, seed=8)
    assert not torch.equal(AUGMENT.view(data.inputs, data.ids, 0), other.view(data.inputs, data.ids, 0))
    assert repr(other) != repr(AUGMENT)


def test_tensors_are_shared_and_the_original_keeps_drawing_afresh():
    data = images(5)
    viewed = data.with_views(2)
    assert viewed.inputs.data_ptr() == data.inputs.data_ptr()
    assert (data.views, viewed.views) == (None, 2)


def test_joined_and_partial_data_sets_follow_the_view():
    train = images(6).with_views(3)
    both, part = joined(train, images(4, 6, EvalTransform(MEAN, STD))), subset(train, [4, 1])
    assert (both.views, part.views) == (3, 3)
    whole = by_id([both.fetch(torch.arange(10))])
    train.set_view(2)
    moved = by_id([both.fetch(torch.arange(10))])
    assert not same(moved, whole)
    assert same(by_id([part.fetch(torch.arange(2))]), {i: moved[i] for i in (44, 11)})
    part.set_view(0)
    assert same(by_id([both.fetch(torch.arange(10))]), whole)


@pytest.mark.process
def test_worker_processes_see_the_view_that_is_set():
    data = images(8).with_views(3)
    loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
    for view in (1, 2, 0):
        set_view(loader, view)
        assert same(by_id(loader), by_id([data.fetch(torch.arange(8))]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: Subset(data, [3, 1, 2]),
        lambda data: ConcatDataset([data, Subset(data, [0])]),
        lambda data: Subset(ConcatDataset([data, data]), [0, 9]),
    ],
    ids=["plain", "subset", "concat", "subset of concat"],
)
def test_a_loader_s_views(wrap):
    data = images(6).with_views(3)
    loader = DataLoader(wrap(data), 2)
    assert views_of(loader) == 3
    set_view(loader, 2)
    expected = {int(i): data.transform.view(x[None], i[None], 2)[0] for x, i in zip(data.inputs, data.ids, strict=True)}
    found = by_id(loader)
    assert found
    assert same(found, {i: expected[i] for i in found})


def test_a_union_of_loaders_follows_the_view():
    loader = union_loader(BatchLoader(images(6).with_views(2), 4), BatchLoader(images(3, 6), 3))
    assert views_of(loader) == 2
    first = by_id(loader)
    assert same(by_id(loader), first)
    set_view(loader, 1)
    assert not same(by_id(loader), first)


@pytest.mark.parametrize(
    "loader", [[1, 2], iter([]), DataLoader(TensorDataset(torch.zeros(3)), 2), DataLoader(images(3))]
)
def test_what_has_no_views_is_left_alone(loader):
    assert views_of(loader) is None
    set_view(loader, 5)


def test_parts_that_disagree_have_no_number_of_views():
    both = ConcatDataset([images(3).with_views(2), images(3)])
    assert views_of(DataLoader(both)) is None
    set_view(DataLoader(both), 1)
    first = both.datasets[0]
    assert torch.equal(first[0][0], AUGMENT.view(first.inputs[:1], first.ids[:1], 1)[0])


class Unnamed:
    random: ClassVar[bool] = True

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "mentioned"),
    [
        (lambda: images(3).with_views(0), ("views", "not 0")),
        (lambda: images(3, ids=False).with_views(2), ("ids",)),
        (lambda: images(3, transform=Unnamed()).with_views(2), ("Unnamed",)),
        (lambda: images(3).with_views(2).set_view(2), ("[0, 2)", "not 2")),
        (lambda: images(3).with_views(2).set_view(-1), ("[0, 2)", "-1")),
        (lambda: images(3).set_view(0), ("[0, 0)", "not 0")),
    ],
)
def test_views_that_cannot_be_are_refused(make, mentioned):
    with refused(*mentioned):
        make()


def test_data_that_is_not_augmented_is_the_same_in_all_views_and_needs_no_ids():
    data = images(4, transform=EvalTransform(MEAN, STD), ids=False).with_views(2)
    first = data.fetch(torch.arange(4))[0]
    data.set_view(1)
    assert torch.equal(data.fetch(torch.arange(4))[0], first)


def test_a_fingerprint_tells_inputs_ids_and_transform_apart_but_not_labels():
    data = images(6)
    prints = {"data": data.fingerprint(), "fewer": subset(data, [0, 1, 2, 3, 4]).fingerprint()}
    for name, options in {
        "transform": {"transform": dataclasses.replace(AUGMENT, padding=1)},
        "seed": {"transform": dataclasses.replace(AUGMENT, seed=1)},
        "none": {"transform": None},
        "order of ids": {"ids": data.ids.flip(0)},
        "no ids": {"ids": None},
        "type": {"inputs": data.inputs.to(torch.int8)},
        "shape": {"inputs": data.inputs.view(6, 64)},
        "pixel": {"inputs": data.inputs.clone().index_fill_(0, torch.tensor([5]), 1)},
        "parts": {"inputs": (data.inputs[:, :, :4], data.inputs[:, :, 4:])},
    }.items():
        parts = {"inputs": data.inputs, "target": data.target, "ids": data.ids, "transform": AUGMENT} | options
        prints[name] = ArrayDataset(**parts).fingerprint()
    assert len(set(prints.values())) == len(prints)
    again = images(6)
    again.target = again.target + 1
    assert again.fingerprint() == prints["data"] == data.with_views(3).fingerprint()
    assert subset(data, [5, 0, 1]).fingerprint() == subset(images(6), [5, 0, 1]).fingerprint()
