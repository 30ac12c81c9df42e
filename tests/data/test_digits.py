from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from scipy.stats import chi2_contingency, chisquare
from sklearn.datasets import load_digits

from tgeokd.data import InputSpec
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.tasks.digits import digits

SOURCE = load_digits()
ROW_OF = {row.tobytes(): i for i, row in enumerate(SOURCE.data)}  # all 1,797 images differ


def rows(split) -> np.ndarray:
    """Which of scikit-learn's images a split holds, found by their pixels."""
    pixels = np.round(split.inputs.numpy().astype(np.float64) * 16)
    return np.array([ROW_OF[row.tobytes()] for row in pixels])


def test_the_source_tells_its_images_apart():
    assert len(ROW_OF) == 1797


@pytest.mark.parametrize(("train", "held_out"), [(600, 200), (50, 20), (1000, 700)])
def test_splits_are_disjoint_of_the_sizes_asked_for_and_use_every_image(train, held_out):
    data = digits(seed=1, train=train, held_out=held_out)
    parts = [rows(data.train), rows(data.held_out), rows(data.test)]
    assert [len(part) for part in parts] == [train, held_out, 1797 - train - held_out]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    assert data.num_classes == 10
    assert data.inputs == InputSpec("array", (64,))
    assert data.class_names == tuple("0123456789")
    for part, held in zip((data.train, data.held_out, data.test), parts, strict=True):
        assert part.ids.tolist() == held.tolist()  # an id is the row in scikit-learn's data


def test_pixels_and_labels_are_those_of_scikit_learn():
    data = digits(seed=2)
    for split in (data.train, data.held_out, data.test):
        assert split.inputs.dtype == torch.float32
        assert split.target.dtype == torch.int64
        assert split.inputs.shape[1:] == (64,)
        index = rows(split)
        assert np.array_equal(split.target.numpy(), SOURCE.target[index])
        # sixteenths are exact in float32
        assert np.array_equal(split.inputs.numpy().astype(np.float64), SOURCE.data[index] / 16)
    assert not data.corrupted.any()


def test_every_split_has_the_classes_shares():
    data = digits(seed=3)
    shares = np.bincount(SOURCE.target) / 1797
    for split in (data.train, data.held_out, data.test):
        counts = np.bincount(split.target, minlength=10)
        assert np.abs(counts - shares * len(split)).max() < 1.5


@pytest.mark.parametrize(
    "sizes", [{}, {"train": 10, "held_out": 10}, {"train": 17, "held_out": 13}, {"train": 1700, "held_out": 87}]
)
def test_every_split_holds_every_class(sizes):
    for seed in range(3):
        data = digits(seed=seed, **sizes)
        for split in (data.train, data.held_out, data.test):
            assert set(split.target.tolist()) == set(range(10))


def test_the_seed_alone_decides_split_and_noise():
    def everything(seed):
        data = digits(seed=seed, noise=0.2)
        parts = (data.train, data.held_out, data.test)
        return [*(part.inputs for part in parts), *(part.target for part in parts), data.corrupted]

    torch.manual_seed(1)
    np.random.seed(1)
    first = everything(4)
    torch.manual_seed(2)
    np.random.seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, everything(4), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, everything(5), strict=True))
    for name in ("train", "held_out", "test"):
        assert set(rows(getattr(digits(seed=4), name))) != set(rows(getattr(digits(seed=5), name)))


def test_noise_wrongs_training_labels_alone_and_says_which():
    clean, noisy = digits(seed=6), digits(seed=6, noise=0.3)
    for a, b in ((clean.train, noisy.train), (clean.held_out, noisy.held_out), (clean.test, noisy.test)):
        assert torch.equal(a.inputs, b.inputs)  # noise does not change the split
    wrong = noisy.train.target != torch.from_numpy(SOURCE.target[rows(noisy.train)])
    assert torch.equal(wrong, noisy.corrupted)
    assert 145 <= wrong.sum() <= 180  # 180 are redrawn, of which one in ten comes out right; 145 is 4 deviations below
    for split in (noisy.held_out, noisy.test):
        assert np.array_equal(split.target.numpy(), SOURCE.target[rows(split)])


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ({"train": 9}, "train=9, held_out=200"),
        ({"held_out": 9}, "held_out=9"),
        ({"train": 1600, "held_out": 190}, "train=1600, held_out=190"),
        ({"train": -5}, "train=-5"),
        ({"train": 5000}, "train=5000"),
    ],
)
def test_impossible_sizes_are_refused(sizes, given):
    with refused(given):
        digits(**sizes)


# ---- symmetric noise


@given(
    labels=st.integers(2, 12).flatmap(
        lambda c: st.tuples(st.just(c), st.lists(st.integers(0, c - 1), min_size=0, max_size=200))
    ),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_noise_flags_the_labels_that_are_wrong_and_no_others(labels, rate, seed):
    num_classes, target = labels[0], torch.tensor(labels[1], dtype=torch.int64)
    before = target.clone()
    noisy, corrupted = symmetric_noise(target, rate, num_classes, seed)
    assert torch.equal(target, before)  # the caller's labels are left alone
    assert noisy.dtype == torch.int64
    assert corrupted.dtype == torch.bool
    assert torch.equal(noisy != target, corrupted)
    assert int(corrupted.sum()) <= round(rate * len(target))
    if len(target):
        assert 0 <= int(noisy.min()) <= int(noisy.max()) < num_classes
    again, flags = symmetric_noise(target, rate, num_classes, seed)
    assert torch.equal(noisy, again)
    assert torch.equal(corrupted, flags)


@given(size=st.integers(0, 300), rate=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_noise_replaces_exactly_that_share(size, rate, seed):
    # with this many classes no label is drawn as it was
    _, corrupted = symmetric_noise(torch.zeros(size, dtype=torch.int64), rate, 2**50, seed)
    assert int(corrupted.sum()) == round(rate * size)


@pytest.mark.parametrize("label", [0, 3, 6])
def test_the_new_label_is_uniform_over_all_classes(label):
    noisy, _ = symmetric_noise(torch.full((7000,), label), 1.0, 7, seed=11)
    assert chisquare(np.bincount(noisy, minlength=7)).pvalue > 0.01


def test_the_new_label_does_not_depend_on_the_old_one():
    target = torch.arange(5).repeat(2000)
    noisy, _ = symmetric_noise(target, 1.0, 5, seed=12)
    table = np.zeros((5, 5))
    np.add.at(table, (target.numpy(), noisy.numpy()), 1)
    assert chi2_contingency(table).pvalue > 0.01


def test_which_labels_are_replaced_is_uniform_over_the_samples():
    hits = sum(symmetric_noise(torch.zeros(1000, dtype=torch.int64), 0.3, 2**50, seed)[1].int() for seed in range(40))
    by_block = hits.reshape(10, 100).sum(dim=1).numpy()
    assert by_block.sum() == 40 * 300
    assert chisquare(by_block).pvalue > 0.01
    assert hits.max() < 40  # and not the same ones for every seed


@pytest.mark.parametrize("rate", [-0.1, 1.01, 3, float("nan")])
def test_an_impossible_rate_is_refused(rate):
    with refused("noise", rate):
        symmetric_noise(torch.zeros(4, dtype=torch.int64), rate, 2, 0)


# ---- loaders of a task


def test_training_batches_hold_each_sample_once_in_another_order_each_time():
    data = digits(seed=0, train=100, held_out=30)
    torch.manual_seed(0)
    loader = data.training_loader(32)
    first, second = [torch.cat([x for x, _, _ in loader]) for _ in range(2)]
    assert [len(y) for _, y, _ in loader] == [32, 32, 32, 4]
    assert not torch.equal(first, second)
    assert not torch.equal(first, data.train.inputs)
    assert {r.numpy().tobytes() for r in first} == {r.numpy().tobytes() for r in data.train.inputs}


def test_training_batches_with_the_held_out_samples_hold_both_and_no_test_sample():
    data = digits(seed=0, noise=0.5, train=100, held_out=30)
    batches = zip(*data.training_loader(64, with_held_out=True), strict=True)
    x, y, ids = (torch.cat(parts) for parts in batches)
    seen = {row.numpy().tobytes(): int(label) for row, label in zip(x, y, strict=True)}
    both = zip(
        torch.cat([data.train.inputs, data.held_out.inputs]),
        torch.cat([data.train.target, data.held_out.target]),
        strict=True,
    )
    assert seen == {row.numpy().tobytes(): int(label) for row, label in both}
    assert len(x) == 130
    assert sorted(ids.tolist()) == sorted([*data.train.ids.tolist(), *data.held_out.ids.tolist()])


def test_ordered_batches_keep_a_split_s_order():
    data = digits(seed=0, train=100, held_out=30)
    x, y, ids = (torch.cat(parts) for parts in zip(*data.ordered_loader(data.train, 33), strict=True))
    assert torch.equal(x, data.train.inputs)
    assert torch.equal(y, data.train.target)
    assert torch.equal(ids, data.train.ids)
