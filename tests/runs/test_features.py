"""Features of images: against the network run directly, against scikit-learn's principal components, and kept on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.runs.features import AnyView, FeatureStore, featurised
from tgeokd.utils.errors import InputError

PLAIN = EvalTransform((0.5,) * 3, (0.25,) * 3)
WIDTH = 6


class Network(nn.Module):
    """A small convolutional network that counts the images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, WIDTH, 3), nn.Linear(WIDTH, 4)
        self.dropout, self.seen = nn.Dropout(0.5), 0

    def features(self, images):
        return self.conv(images).relu().mean(dim=(2, 3))

    def forward(self, images):
        self.seen += len(images)
        return self.head(self.dropout(self.features(images)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TGEOKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def images(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8))


def task(n=(40, 12, 9)):
    splits = []
    for seed, (size, transform) in enumerate(
        zip(n, (TrainTransform(PLAIN.mean, PLAIN.std, padding=1), PLAIN, PLAIN), strict=True)
    ):
        splits.append(
            ArrayDataset(images(size, seed), torch.arange(size) % 4, torch.arange(size) + 100 * seed, transform)
        )
    return TaskData(*splits, 4, InputSpec("array", (3, 8, 8)))


def expected(net, pictures):
    with torch.no_grad():
        return net.eval().features(PLAIN(pictures))


def close(found, wanted):
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=1e-4)  # kept in half precision


def test_features_are_the_inputs_of_the_last_layer_in_eval_mode():
    net, pictures = network(), images(30)
    found = FeatureStore(net, PLAIN, pictures[:2]).features(pictures, mirrored=True)
    assert found.shape == (30, 2, WIDTH)
    close(found[:, 0], expected(net, pictures))
    close(found[:, 1], expected(net, pictures.flip(3)))


def test_each_image_is_computed_once_whatever_the_order_and_the_head(cache):
    pictures = images(30)
    FeatureStore(network(), PLAIN, pictures[:2]).features(pictures[:20])
    again = network()
    nn.init.ones_(again.head.weight)
    store = FeatureStore(again, PLAIN, pictures[:2])
    again.seen = 0
    order = torch.randperm(30)
    close(store.features(pictures[order])[:, 0], expected(again, pictures[order]))
    assert again.seen == 10
    assert not list(cache.rglob("*.tmp"))


def test_another_network_or_another_normalisation_has_features_of_its_own():
    pictures = images(6)
    first = FeatureStore(network(0), PLAIN, pictures[:2]).features(pictures)
    other = FeatureStore(network(1), PLAIN, pictures[:2]).features(pictures)
    brighter = EvalTransform((0.1,) * 3, PLAIN.std)
    third = FeatureStore(network(0), brighter, pictures[:2]).features(pictures)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, third)


def test_the_inputs_are_principal_components_of_the_training_images():
    data, net = task(), network()
    found = featurised(data, net, components=4, mirrored=False, seed=0)
    raw = [expected(net, split.inputs) for split in (data.train, data.held_out, data.test)]
    pca = PCA(4, svd_solver="full").fit(raw[0].double().numpy())
    scale = pca.explained_variance_[:4].mean() * (len(raw[0]) - 1) / len(raw[0])
    for split, features in zip((found.train, found.held_out, found.test), raw, strict=True):
        ours = split.fetch(torch.arange(len(split)))[0].numpy()
        theirs = pca.transform(features.double().numpy()) / np.sqrt(scale)
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=0.05, atol=0.02)
    assert found.inputs.shape == (4,)
    assert np.all(np.diff(pca.explained_variance_) <= 0)


def test_training_uses_both_versions_and_evaluation_the_image_as_it_is():
    found = featurised(task(), network(), components=4, mirrored=True, seed=0)
    rows = torch.arange(40)
    both = found.train.inputs
    draws = torch.stack([found.train.fetch(rows)[0] for _ in range(20)])
    assert bool(((draws == both[:, 0]) | (draws == both[:, 1])).all())
    assert bool((draws == both[:, 0]).any()) and bool((draws == both[:, 1]).any())  # noqa: PT018
    held_out = found.held_out
    assert torch.equal(held_out.fetch(torch.arange(12))[0], held_out.inputs[:, 0])


def test_a_view_depends_on_sample_and_number_alone():
    view, inputs, ids = AnyView(3), torch.randn(50, 2, 4), torch.arange(50)
    whole = view.view(inputs, ids, 1)
    assert torch.equal(view.view(inputs[10:20], ids[10:20], 1), whole[10:20])
    assert not torch.equal(view.view(inputs, ids, 0), whole)


def test_refused():
    data = task()
    table = dataclasses.replace(data, inputs=InputSpec("table", (3,)))
    with pytest.raises(InputError, match="images"):
        featurised(table, network(), components=2, mirrored=False, seed=0)


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TGEOKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="TGEOKD_CACHE"):
        FeatureStore(network(), PLAIN, images(2)).features(images(4))
