"""Files of predictions that name their classes and have labels or hashes."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from tgeokd.teachers import StoredPredictions
from tgeokd.teachers.names import order_by_name
from tgeokd.utils.errors import InputError

SUFFIXES = (".npz", ".safetensors", ".parquet")
IDS = torch.tensor([40, 7, 12])
NAMES = ("cat", "dog", "eel")
OTHER = ("eel", "cat", "dog")  # NAMES by place: 2, 0, 1
LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])


def stored(**options):
    return StoredPredictions(LOGITS, IDS, class_names=OTHER, **options)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_labels_and_hashes_are_saved_and_read(tmp_path, suffix):
    labels, hashes = torch.tensor([0, 2, 1]), torch.tensor([5, -6, 2**62])
    stored(labels=labels, hashes=hashes).save(tmp_path / f"t{suffix}")
    found = StoredPredictions.from_file(tmp_path / f"t{suffix}")
    assert found.class_names == OTHER
    assert found.labels.tolist() == labels.tolist()
    assert found.hashes.tolist() == hashes.tolist()
    assert torch.equal(found.lookup(IDS), LOGITS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_classes_are_mapped_by_name_and_the_order_is_logged(tmp_path, suffix, caplog):
    stored(labels=torch.tensor([0, 2, 1])).save(tmp_path / f"t{suffix}")
    with caplog.at_level(logging.WARNING, "tgeokd"):
        found = StoredPredictions.from_file(tmp_path / f"t{suffix}", class_names=NAMES)
    assert found.class_names == NAMES
    assert found.lookup(torch.tensor([40])).tolist() == [[1.0, 2.0, 0.0]]
    assert found.labels.tolist() == [2, 1, 0]  # eel, dog, cat
    assert "eel, cat, dog into cat, dog, eel" in caplog.text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_order_that_is_assumed_is_logged(tmp_path, suffix, caplog):
    StoredPredictions(LOGITS, IDS).save(tmp_path / f"t{suffix}")
    with caplog.at_level(logging.INFO, "tgeokd"):
        StoredPredictions.from_file(tmp_path / f"t{suffix}", class_names=NAMES)
    assert "cat, dog, eel" in caplog.text


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("wanted", "named"), [(("cat", "dog", "cod"), "eel"), ((*NAMES, "cod"), "cod")])
def test_classes_of_another_name_are_refused(tmp_path, suffix, wanted, named):
    stored().save(tmp_path / f"t{suffix}")
    with pytest.raises(InputError, match=named) as caught:
        StoredPredictions.from_file(tmp_path / f"t{suffix}", class_names=wanted)
    assert f"t{suffix}" in str(caught.value)


@pytest.mark.parametrize("label", [["dog", "eel", "cat"], [1, 2, 0]])
def test_labels_are_names_or_indices(tmp_path, label):
    np.savez(tmp_path / "t.npz", ids=IDS.numpy(), logits=LOGITS.numpy(), labels=np.array(label))
    pl.DataFrame({"id": IDS.numpy(), "logits": LOGITS.numpy(), "label": label}).write_parquet(tmp_path / "t.parquet")
    for file in ("t.npz", "t.parquet"):
        found = StoredPredictions.from_file(tmp_path / file, class_names=NAMES)
        assert found.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(("labels", "named"), [(["dog", "cow", "cat"], "cow"), ([1, 2, 3], "not 3")])
def test_a_label_of_no_class_is_refused(tmp_path, labels, named):
    np.savez(tmp_path / "t.npz", ids=IDS.numpy(), logits=LOGITS.numpy(), labels=np.array(labels))
    with pytest.raises(InputError, match=named):
        StoredPredictions.from_file(tmp_path / "t.npz", class_names=NAMES)


def test_text_labels_without_names_are_not_compared_with_a_word(tmp_path, caplog):
    np.savez(tmp_path / "t.npz", ids=IDS.numpy(), logits=LOGITS.numpy(), labels=np.array(["dog", "cow", "cat"]))
    assert StoredPredictions.from_file(tmp_path / "t.npz").labels is None
    assert "class_names" in caplog.text


def test_columns_named_by_class(tmp_path):
    columns = {f"prob_{name}": [0.5, 0.25, 0.25] for name in OTHER[:2]} | {"prob_dog": [0.0, 0.5, 0.5]}
    pl.DataFrame({"id": IDS.numpy(), **columns}).write_parquet(tmp_path / "t.parquet")
    found = StoredPredictions.from_file(tmp_path / "t.parquet", class_names=NAMES)
    torch.testing.assert_close(found.lookup(torch.tensor([40])).softmax(-1), torch.tensor([[0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("names", ['{"a": 1}', "[1, 2, 3]", "not json", '["cat"]'])
def test_names_of_another_form_are_refused(tmp_path, names):
    save_file({"ids": IDS, "logits": LOGITS}, tmp_path / "t.safetensors", {"class_names": names})
    with pytest.raises(InputError, match=r"t\.safetensors"):
        StoredPredictions.from_file(tmp_path / "t.safetensors")


@pytest.mark.parametrize("name", ["labels", "hashes"])
@pytest.mark.parametrize("wrong", [torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 2.0])])
def test_labels_and_hashes_that_do_not_fit_are_refused(name, wrong):
    with pytest.raises(InputError, match=name):
        stored(**{name: wrong})


def test_the_places_of_names():
    assert order_by_name(OTHER, NAMES, "t") == [1, 2, 0]
    assert order_by_name(NAMES, NAMES, "t") == [0, 1, 2]
    assert order_by_name((), NAMES, "t") is order_by_name(NAMES, (), "t") is None
    with pytest.raises(InputError, match="cat"):
        order_by_name(("cat", "dog", "cat"), NAMES, "t")


def test_names_that_are_numbers_are_not_written_as_columns(tmp_path):
    with pytest.raises(InputError, match=r"\.npz"):
        StoredPredictions(LOGITS, IDS, class_names=("2", "1", "0")).save(tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
    StoredPredictions(LOGITS, IDS, class_names=("0", "1", "2")).save(tmp_path / "t.parquet")
    found = StoredPredictions.from_file(tmp_path / "t.parquet", class_names=("0", "1", "2"))
    assert torch.equal(found.lookup(IDS), LOGITS)
