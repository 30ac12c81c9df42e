from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from realdata import data_dir
from refusals import refused
from scipy.stats import chisquare
from sklearn.metrics import confusion_matrix

from tgeokd.data.noise import (
    confusion_counts,
    confusion_noise,
    read_confusion_counts,
    read_human_labels,
    symmetric_noise,
)

COUNTS = torch.tensor([[6, 3, 1], [0, 5, 5], [2, 0, 0]])


def test_a_share_1_over_c_of_the_replaced_labels_stays_right():
    _, wrong = symmetric_noise(torch.arange(4).repeat(10000), 0.6, 4, 1)
    assert float(wrong.double().mean()) == pytest.approx(0.6 * 3 / 4, abs=0.01)


# ---- confusion


@pytest.mark.parametrize("label", [0, 1, 2])
def test_labels_are_drawn_in_the_proportions_of_their_class_s_row(label):
    noisy, wrong = confusion_noise(torch.full((9000,), label), COUNTS, seed=3)
    drawn, row = np.bincount(noisy, minlength=3), COUNTS[label].numpy()
    assert noisy.dtype == torch.int64
    assert (drawn[row == 0] == 0).all()
    if (row > 0).sum() > 1:
        assert chisquare(drawn[row > 0], 9000 * row[row > 0] / row.sum()).pvalue > 0.01
    assert torch.equal(wrong, noisy != label)


@given(
    counts=arrays(np.int64, (4, 4), elements=st.integers(0, 5)).filter(lambda c: c.any(axis=1).all()),
    target=st.lists(st.integers(0, 3), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_no_label_is_drawn_that_nobody_gave_its_class(counts, target, seed):
    clean = torch.tensor(target, dtype=torch.int64)
    noisy, wrong = confusion_noise(clean, torch.from_numpy(counts), seed)
    assert all(counts[c, n] > 0 for c, n in zip(clean.tolist(), noisy.tolist(), strict=True))
    assert torch.equal(wrong, noisy != clean)
    again, _ = confusion_noise(clean, torch.from_numpy(counts), seed)
    assert torch.equal(noisy, again)


def test_another_seed_draws_other_labels():
    clean = torch.zeros(500, dtype=torch.int64)
    assert not torch.equal(confusion_noise(clean, COUNTS, 1)[0], confusion_noise(clean, COUNTS, 2)[0])


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80))
def test_confusion_counts_are_those_of_scikit_learn(pairs):
    clean, noisy = np.array(pairs).T
    counts = confusion_counts(torch.from_numpy(clean), torch.from_numpy(noisy), 5)
    assert np.array_equal(counts, confusion_matrix(clean, noisy, labels=range(5)))


def test_counts_survive_a_file(tmp_path):
    np.savetxt(tmp_path / "counts.csv", COUNTS.numpy(), fmt="%d", delimiter=",")
    assert torch.equal(read_confusion_counts(tmp_path / "counts.csv", 3), COUNTS)


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("1,2\n3,4\n", ("3 x 3", "2 x 2")),
        ("1,2,3\n3,4\n", ("integers",)),
        ("1,2,3\n1,x,3\n1,2,3\n", ("integers",)),
        ("1,2,3\n0,0,0\n1,2,3\n", ("row 1",)),
        ("1,2,3\n1,1,1\n1,-2,3\n", ("row 2",)),
    ],
)
def test_a_bad_table_of_counts_is_named(tmp_path, text, mentioned):
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with refused("counts.csv", *mentioned):
        read_confusion_counts(path, 3)


# ---- labels by people


def save(path, **labels):
    torch.save({key: np.asarray(value) for key, value in labels.items()}, path)


def test_label_sets_come_back(tmp_path):
    save(tmp_path / "labels.pt", clean_label=[0, 1, 2], worse_label=[2, 1, 0], aggre_label=[0, 0, 0])
    labels = read_human_labels(tmp_path / "labels.pt", ("clean_label", "worse_label"), 3)
    assert {key: value.tolist() for key, value in labels.items()} == {
        "clean_label": [0, 1, 2],
        "worse_label": [2, 1, 0],
    }


@pytest.mark.parametrize(
    ("labels", "mentioned"),
    [
        ({"clean_label": [0, 1]}, ("'noisy_label'", "clean_label")),
        ({"clean_label": [0, 1], "noisy_label": [1, 3]}, ("'noisy_label'", "row 1", "label 3")),
        ({"clean_label": [0, 1], "noisy_label": [-1, 2]}, ("'noisy_label'", "row 0", "-1")),
        ({"clean_label": [0, 1], "noisy_label": [0.0, 2.0]}, ("integer",)),
        ({"clean_label": [0, 1], "noisy_label": [[0, 2]]}, ("'noisy_label'", "(1, 2)")),
        ({"clean_label": [0, 1], "noisy_label": [0, 2, 1]}, ("'clean_label'", "'noisy_label'")),
    ],
)
def test_a_bad_file_of_labels_is_named(tmp_path, labels, mentioned):
    save(tmp_path / "labels.pt", **labels)
    with refused(tmp_path / "labels.pt", *mentioned):
        read_human_labels(tmp_path / "labels.pt", ("clean_label", "noisy_label"), 3)


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_nothing_but_arrays_is_let_in(tmp_path):
    torch.save({"clean_label": Trap(), "noisy_label": Trap()}, tmp_path / "labels.pt")
    with refused("labels.pt"):
        read_human_labels(tmp_path / "labels.pt", ("clean_label", "noisy_label"), 3)
    assert not Trap.sprung


@pytest.mark.parametrize("content", [b"", b"no labels", pickle.dumps({"clean_label": [1]}, protocol=2)])
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "labels.pt").write_bytes(content)
    with refused("labels.pt"):
        read_human_labels(tmp_path / "labels.pt", ("clean_label",), 3)


def test_a_truncated_file_is_refused(tmp_path):
    save(tmp_path / "labels.pt", clean_label=np.zeros(1000, dtype=np.int64))
    content = (tmp_path / "labels.pt").read_bytes()
    (tmp_path / "labels.pt").write_bytes(content[: len(content) // 2])
    with refused("labels.pt", "CIFAR-N"):
        read_human_labels(tmp_path / "labels.pt", ("clean_label",), 3)


@pytest.mark.realdata
def test_the_official_file_is_read_and_agrees_with_the_other_forms_it_was_given_in():
    folder = data_dir() / "cifar-n"
    if not folder.is_dir():
        pytest.skip("no labels by people among the real data")
    labels = read_human_labels(folder / "CIFAR-100_human.pt", ("clean_label", "noisy_label"), 100)
    arrays_of = np.load(folder / "cifar100n_labels_official_order.npz")
    for key, value in labels.items():
        assert np.array_equal(value, arrays_of[key])
    assert float((labels["clean_label"] != labels["noisy_label"]).double().mean()) == pytest.approx(0.4020, abs=5e-5)
    counts = confusion_counts(labels["clean_label"], labels["noisy_label"], 100)
    assert torch.equal(counts, read_confusion_counts(folder / "cifar100n_confusion_counts.csv", 100))
