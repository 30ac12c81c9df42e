"""Class means: the full table against means by class, the sparse one against the full table."""

from __future__ import annotations

import importlib
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgeokd.core.geometry.class_means import ClassMeans, class_means
from tgeokd.utils.errors import InputError

module = importlib.import_module("tgeokd.core.geometry.class_means")  # the package has a function of this name

# ---- the full table


def grouped_mean(probs, target, c):
    return np.array([np.mean([p for p, y in zip(probs, target, strict=True) if y == k], axis=0) for k in range(c)])


def test_class_means_are_the_means_by_class():
    rng = np.random.default_rng(0)
    probs, target = rng.dirichlet(np.ones(4), 30), rng.permutation(np.arange(30) % 4)
    found = class_means(torch.from_numpy(probs), torch.from_numpy(target), 4)
    np.testing.assert_allclose(found.numpy(), grouped_mean(probs, target, 4), rtol=1e-12)


@given(st.integers(0, 2**31), st.lists(st.integers(0, 30), max_size=5))
def test_streamed_class_means_are_those_of_the_whole_however_it_is_cut(seed, cuts):
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.dirichlet(np.ones(3), 30)).float()
    target = torch.from_numpy(rng.permutation(np.arange(30) % 3))
    means = ClassMeans(3)
    edges = [0, *sorted(cuts), 30]
    for start, end in itertools.pairwise(edges):  # some pieces are empty
        means.update(probs[start:end], target[start:end])
    whole = class_means(probs, target, 3)
    assert means.compute().dtype == torch.float32
    torch.testing.assert_close(means.compute(), whole, rtol=0, atol=6e-8)
    np.testing.assert_allclose(whole.numpy(), grouped_mean(probs.numpy(), target.numpy(), 3), rtol=1e-5)
    assert means.counts.tolist() == [10, 10, 10]


def test_reduce_sums_over_processes():
    rng = np.random.default_rng(0)
    probs, target = torch.from_numpy(rng.dirichlet(np.ones(3), 20)), torch.from_numpy(rng.integers(0, 3, 20))
    here, there, elsewhere = ClassMeans(3), ClassMeans(3), []
    here.update(probs[:8], target[:8])
    there.update(probs[8:], target[8:])
    there.reduce(lambda values: elsewhere.append(values) or values)
    here.reduce(lambda values: values + elsewhere.pop(0))
    torch.testing.assert_close(here.compute(), class_means(probs, target, 3))
    assert here.counts.tolist() == target.bincount(minlength=3).tolist()


def test_a_sparse_table_cannot_be_reduced():
    means = ClassMeans(10, 3)
    means.reduce(lambda values: values)  # one process
    with pytest.raises(InputError, match="10 classes"):
        means.reduce(lambda values: 2 * values)


def test_many_small_batches_do_not_drift():
    means = ClassMeans(2)
    row = torch.tensor([[0.1, 0.9]])
    for _ in range(3000):
        means.update(row, torch.tensor([0]))
    means.update(row, torch.tensor([1]))
    torch.testing.assert_close(means.compute()[0], row[0], rtol=0, atol=1e-8)


def test_a_class_without_a_sample_is_uniform_and_one_warning_names_all_such():
    probs, target = torch.tensor([[0.7, 0.1, 0.1, 0.1]]), torch.tensor([2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = class_means(probs, target, 4)
    (warning,) = caught
    assert "class 0, 1, 3" in str(warning.message)
    uniform = [0.25] * 4
    torch.testing.assert_close(found, torch.tensor([uniform, uniform, [0.7, 0.1, 0.1, 0.1], uniform]))


def test_the_warning_stays_short_for_many_empty_classes():
    with pytest.warns(UserWarning, match=r"class 1, 2, .*, 20, \.\.\."):
        class_means(torch.full((1, 50), 0.02), torch.tensor([0]), 50)


def test_no_warning_where_every_class_has_a_sample():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_means(torch.full((3, 3), 1 / 3), torch.arange(3), 3)


def test_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match=r"teacher_probs.* 4 .* 3"):
        class_means(torch.full((2, 4), 0.25), torch.tensor([0, 1]), 3)


# ---- the sparse table


def streamed(probs, target, num_classes, kept, batch=16):
    means = ClassMeans(num_classes, kept)
    for start in range(0, len(target), batch):
        means.update(probs[start : start + batch], target[start : start + batch])
    return means.compute()


def teacher(seed, n, c, *, sharpness=4.0, candidates=None):
    """Predictions and labels, every class with a sample; with `candidates`, only so many classes of each row are above 0."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % c
    logits = sharpness * torch.randn(n, c, generator=generator, dtype=torch.float64)
    if candidates is not None:
        among = (torch.arange(c) - target.unsqueeze(-1)) % c < candidates
        logits = logits.masked_fill(~among, -torch.inf)
    order = torch.randperm(n, generator=generator)
    return logits.softmax(dim=-1)[order], target[order]


def full(probs, target, c):
    return torch.stack([probs[target == k].mean(dim=0) for k in range(c)])


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_with_few_candidates_per_class_the_kept_entries_are_exactly_the_largest_of_the_full_table(batch):
    c, kept = 50, 4
    probs, target = teacher(0, 400, c, candidates=kept + 1)  # itself and `kept` others
    truth = full(probs, target, c)
    found = streamed(probs, target, c, kept, batch)
    assert found.is_sparse
    assert found.shape == (c, c)
    torch.testing.assert_close(found.to_dense(), truth, rtol=1e-12, atol=1e-15)


def test_the_largest_are_kept_where_samples_differ_in_their_largest():
    # class 0: the other classes 1, 2, 3 have means 0.3, 0.2, 0.1, though single samples say otherwise
    rows = torch.tensor([[0.4, 0.5, 0.0, 0.1], [0.4, 0.1, 0.4, 0.1], [0.4, 0.3, 0.2, 0.1]])
    probs = torch.cat([rows, torch.eye(4)[1:]])
    target = torch.tensor([0, 0, 0, 1, 2, 3])
    found = streamed(probs, target, 4, 2, batch=1)  # carries all three on the way
    torch.testing.assert_close(found.to_dense()[0], torch.tensor([0.4, 0.3, 0.2, 0.0]))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(50, 300), st.integers(1, 8), st.integers(1, 64))
def test_entries_are_never_above_the_truth_the_own_class_is_exact_and_every_row_has_its_entries(seed, c, kept, batch):
    probs, target = teacher(seed, 3 * c, c)
    truth = full(probs, target, c)
    found = streamed(probs, target, c, kept, batch).coalesce()
    rows, columns = found.indices()
    assert torch.equal(rows, torch.arange(c).repeat_interleave(kept + 1))
    values = found.values()
    assert (values <= truth[rows, columns] + 1e-12).all()
    own = rows == columns
    assert torch.equal(rows[own], torch.arange(c))
    torch.testing.assert_close(values[own], truth.diagonal(), rtol=1e-12, atol=0)


def test_little_is_lost_where_the_teacher_gives_most_to_a_few_classes():
    c, kept = 300, 8
    probs, target = teacher(1, 6000, c, sharpness=6.0)
    truth = full(probs, target, c)
    others = truth - truth.diagonal().diag()
    best = others.topk(kept).values.sum(dim=-1)
    found = streamed(probs, target, c, kept)
    got = found.to_dense().sum(dim=-1) - truth.diagonal()
    assert (got <= best + 1e-12).all()
    assert (got / best).mean() > 0.9


def test_the_same_batches_give_the_same_table_bit_for_bit():
    probs, target = teacher(2, 900, 60)
    first, second = (streamed(probs.float(), target, 60, 5) for _ in range(2))
    assert torch.equal(first.coalesce().indices(), second.coalesce().indices())
    assert torch.equal(first.coalesce().values(), second.coalesce().values())
    assert first.dtype == torch.float32


def test_a_class_without_a_sample_is_uniform_on_its_entries():
    probs, target = teacher(3, 100, 10)
    some = target != 7
    with pytest.warns(UserWarning, match="class 7"):
        found = streamed(probs[some], target[some], 10, 3)
    row = found.to_dense()[7]
    assert row[7] == 0.1
    assert sorted(row.tolist()) == [0.0] * 6 + [0.1] * 4


def test_memory_does_not_grow_with_the_samples():
    c, kept = 40, 3

    def most_entries(samples):
        means = ClassMeans(c, kept)
        most = 0
        for seed in range(samples // 20):
            means.update(*teacher(seed, 20, c))
            most = max(most, len(means._rows._keys) + means._rows._new_entries)
        return most

    assert most_entries(4000) == most_entries(1000)
    assert most_entries(1000) <= c * (2 * kept) + c * kept + 20 * (2 * kept)


def test_the_table_of_very_many_classes_is_sparse_by_default(monkeypatch):
    monkeypatch.setattr(module, "DENSE_CLASSES", 30)
    monkeypatch.setattr(module, "KEPT", 5)
    probs, target = teacher(4, 62, 31)
    found = class_means(probs, target, 31)
    assert found.is_sparse
    assert found._nnz() == 31 * 6
    probs, target = teacher(4, 60, 30)
    assert not class_means(probs, target, 30).is_sparse


@pytest.mark.parametrize("kept", [0, 10])
def test_an_impossible_number_of_entries_is_refused(kept):
    with pytest.raises(InputError, match=f"kept .*{kept}"):
        ClassMeans(10, kept)


def test_a_hundred_thousand_classes():
    c = 100_000
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.integers(0, c, 8))
    probs = torch.full((8, c), 0.1 / (c - 3))
    others = (target.unsqueeze(-1) + torch.tensor([1, 2])) % c
    probs.scatter_(1, target.unsqueeze(-1), 0.5).scatter_(1, others, torch.tensor([0.3, 0.1]).expand(8, 2))
    means = ClassMeans(c)
    means.update(probs, target)
    with pytest.warns(UserWarning, match="training sample"):
        found = means.compute()
    assert found._nnz() == c * (module.KEPT + 1)
    row = found.index_select(0, target[:1]).to_dense()[0]
    y = int(target[0])
    assert row[[y, (y + 1) % c, (y + 2) % c]].tolist() == pytest.approx([0.5, 0.3, 0.1])
