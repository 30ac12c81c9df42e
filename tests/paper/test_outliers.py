"""Outliers made from normal samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick import short

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.tasks.cifar import CIFAR100
from tgeokd.paper.outliers import below, feature_sd, noisy_inputs, relabellers, wrong_labels
from tgeokd.runs.config import preset, replace


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_area_is_the_share_of_pairs(outlier, normal):
    won = sum((o < n) + 0.5 * (o == n) for o in outlier for n in normal)
    assert below(torch.tensor(outlier), torch.tensor(normal)) == pytest.approx(won / (len(outlier) * len(normal)))


def table_batches():
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(4000, 2, generator=generator) * torch.tensor([2.0, 0.0]) + 5
    codes = torch.arange(4000)[:, None]
    target = torch.arange(4000) % 3
    return [((numeric[rows], codes[rows]), target[rows], rows) for rows in torch.arange(4000).split(1500)]


def data_of(classes, spec):
    return TaskData(*[ArrayDataset(torch.zeros(1, 1), torch.zeros(1))] * 3, classes, spec)


def test_deviation_is_numpy_s_by_feature_and_by_channel():
    images = torch.rand(7, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    sd = feature_sd([(images[:4], torch.zeros(4)), (images[4:], torch.zeros(3))])
    assert sd.shape == (3, 1, 1)
    assert sd.flatten().numpy() == pytest.approx(images.numpy().std(axis=(0, 2, 3)), rel=1e-5)
    vectors = images.flatten(1)
    assert feature_sd([(vectors, None)]).numpy() == pytest.approx(vectors.numpy().std(axis=0), rel=1e-5)
    sd = feature_sd(table_batches())
    assert sd.dtype == torch.float32
    assert sd.tolist() == pytest.approx([2.0, 0.0], abs=0.1)


def test_noise_is_added_to_numbers_alone():
    batches = table_batches()
    changed = noisy_inputs(batches, torch.tensor([2.0, 0.0]), seed=1)
    again = noisy_inputs(batches, torch.tensor([2.0, 0.0]), seed=1)
    for (old, *rest), (new, *same), (other, *_) in zip(batches, changed, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rest, same, strict=True))
        assert torch.equal(old[1], new[1])  # codes
        assert torch.equal(old[0][:, 1], new[0][:, 1])  # a column without spread gets no noise
        assert torch.equal(new[0], other[0])
    added = torch.cat([new[0][0][:, 0] - old[0][0][:, 0] for old, new in zip(batches, changed, strict=True)])
    assert float(added.std()) == pytest.approx(2.0, rel=0.05)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.1)


def test_wrong_labels_are_wrong_and_inputs_and_ids_are_kept():
    batches = table_batches()
    kinds = relabellers(short(), data_of(3, InputSpec("table", (2,), (4000,))))
    assert set(kinds) == {"symmetric"}
    relabelled, wrong = wrong_labels(batches, kinds["symmetric"])
    old, new = (torch.cat([batch[1] for batch in each]) for each in (batches, relabelled))
    assert torch.equal(wrong, old != new)
    assert float(wrong.double().mean()) == pytest.approx(2 / 3, abs=0.05)  # drawn from all three classes
    assert all(a[0] is b[0] and a[2] is b[2] for a, b in zip(batches, relabelled, strict=True))


def test_human_confusions_are_found_beside_the_data(tmp_path):
    config = replace(preset("cifar100"), data={"labels": "fine"}, data_dir=str(tmp_path))
    data = data_of(100, InputSpec("array", (3, 32, 32)))
    assert set(relabellers(config, data)) == {"symmetric"}
    counts = np.roll(np.eye(100, dtype=int), 1, axis=1)  # every class is taken for the next one
    (tmp_path / "cifar-n").mkdir()
    np.savetxt(tmp_path / "cifar-n" / CIFAR100.counts_file, counts, fmt="%d", delimiter=",")
    assert set(relabellers(replace(config, task="digits"), data)) == {"symmetric"}
    relabelled, wrong = wrong_labels([(None, torch.tensor([3, 99]))], relabellers(config, data)["human"])
    assert relabelled[0][1].tolist() == [4, 0]
    assert wrong.all()
