"""CIFAR-10N from parquet files: against images and labels written by the test, and refusals of damaged files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from realdata import data_dir
from refusals import refused

from tgeokd.data.tasks.cifar import cifar10, cifar10n

pl = pytest.importorskip("polars")
N, N_TEST = 60, 30
HUMAN = ("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")  # without losses, so that pixels can be compared
    return buffer.getvalue()


def pictures(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cifar-10"
    place.mkdir()
    clean = np.arange(N) % 10
    for name, n, labels in (("train", N, clean), ("test", N_TEST, np.arange(N_TEST) % 10)):
        frame = {"index": np.arange(n), "image_jpeg": [png(p) for p in pictures(n, n)], "label": labels}
        pl.DataFrame(frame).write_parquet(place / f"{name}.parquet")
    human = {name: (clean + (np.arange(N) % (k + 2) == 0)) % 10 for k, name in enumerate(HUMAN)}
    pl.DataFrame({"clean_label": clean, **human}).write_parquet(place / "cifar10n_labels.parquet")
    return tmp_path


OPTIONS = {"checksum": "any", "held_out": 20, "augment": False}


def test_people_label_the_training_images_and_the_truth_the_others(folder):
    data = cifar10n(data_dir=folder, **OPTIONS)
    ids = data.train.ids
    clean, human = ids % 10, torch.where(ids % 2 == 0, (ids + 1) % 10, ids % 10)
    assert torch.equal(data.train.target, human)
    assert torch.equal(data.corrupted, human != clean)
    assert torch.equal(data.held_out.target, data.held_out.ids % 10)
    assert torch.equal(data.train.inputs, torch.from_numpy(pictures(N, N)).permute(0, 3, 1, 2)[ids])
    assert data.notes["noise"] == "cifar_n"
    assert data.notes["official"] is False
    assert data.class_names[3] == "cat"


@pytest.mark.parametrize("labels", HUMAN[1:])
def test_other_annotators(folder, labels):
    data = cifar10n(data_dir=folder, cifar_n_labels=labels, **OPTIONS)
    k = HUMAN.index(labels) + 2
    assert torch.equal(data.corrupted, data.train.ids % k == 0)


def test_cifar10_reads_the_same_files_without_noise(folder):
    data = cifar10(data_dir=folder, **OPTIONS)
    assert torch.equal(data.train.target, data.train.ids % 10)
    assert not data.corrupted.any()


def test_labels_of_other_images_are_refused(folder):
    path = folder / "cifar-10" / "cifar10n_labels.parquet"
    pl.read_parquet(path).with_columns(clean_label=pl.col("clean_label").reverse()).write_parquet(path)
    with refused("clean_label", "row 0"):
        cifar10n(data_dir=folder, **OPTIONS)


def test_a_damaged_image_is_refused(folder):
    path = folder / "cifar-10" / "train.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(image_jpeg=pl.lit(b"no image")).write_parquet(path)
    with refused("train.parquet"):
        cifar10n(data_dir=folder, **OPTIONS)


def test_the_official_archive_is_asked_for_by_default(folder):
    with refused("CIFAR-10", "checksum=any"):
        cifar10n(data_dir=folder, held_out=20)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("labels", "rate"), [("worse_label", 0.4021), ("aggre_label", 0.0901), ("random_label1", 0.1723)]
)
def test_real_labels_have_the_published_share_of_errors(labels, rate):
    data = cifar10n(data_dir=data_dir(), checksum="any", cifar_n_labels=labels, held_out=5000, augment=False)
    assert float(data.corrupted.double().mean()) == pytest.approx(rate, abs=0.004)
