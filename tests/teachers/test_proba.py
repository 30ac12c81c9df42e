"""Fitted classifiers as teachers, compared with ``predict_proba``."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC
from torch.utils.data import DataLoader

from tgeokd.core.model_call import class_logits
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec
from tgeokd.data.batch import Batch
from tgeokd.teachers import ProbaTeacher, StoredPredictions
from tgeokd.teachers.proba import as_columns, categorical_columns
from tgeokd.utils.errors import InputError

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)


class Fixed:
    """A classifier that returns what it was given."""

    def __init__(self, probs, classes=(0, 1)):
        self.classes_ = np.asarray(classes)
        self.probs = np.asarray(probs)

    def predict_proba(self, columns):
        return self.probs


@pytest.mark.parametrize("make", [LogisticRegression, GaussianNB], ids=lambda make: make.__name__)
def test_softmax_of_the_logits_is_predict_proba(make):
    classifier, x = make().fit(X, Y), torch.from_numpy(X)
    teacher = ProbaTeacher(classifier, num_classes=3, class_names=["a", "b", "c"])
    logits = teacher(x)
    assert logits.dtype == torch.float32
    assert torch.equal(teacher.logits(Batch(x, torch.from_numpy(Y))), logits)
    assert (teacher.num_classes, teacher.class_names, teacher.fingerprint()) == (3, ("a", "b", "c"), None)
    np.testing.assert_allclose(logits.softmax(dim=-1).numpy(), classifier.predict_proba(X), rtol=1e-4, atol=1e-7)


def test_more_dimensions_are_flattened_and_no_gradient_is_needed():
    teacher = ProbaTeacher(GaussianNB().fit(X, Y))
    x = torch.from_numpy(X)
    assert torch.equal(teacher(x.reshape(-1, 2, 2).requires_grad_()), teacher(x))


def test_columns_of_a_table_are_numeric_ones_and_then_codes():
    classifier = GaussianNB().fit(X, Y)
    numeric, codes = torch.from_numpy(X[:, :2]), torch.from_numpy(X[:, 2:].round().astype(np.int64))
    found = class_logits(ProbaTeacher(classifier), (numeric, codes)).softmax(dim=-1)
    np.testing.assert_allclose(
        found.numpy(), classifier.predict_proba(np.c_[X[:, :2], X[:, 2:].round()]), rtol=1e-4, atol=1e-7
    )


@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5))
def test_columns(m, k, rows):
    numeric, codes = torch.randn(rows, m), torch.randint(0, 2**24, (rows, k))
    found = as_columns(numeric, codes)
    assert found.dtype == np.float32
    assert found.astype(np.int64)[:, m:].tolist() == codes.tolist()  # exact up to 2^24
    assert found[:, :m].tolist() == numeric.tolist()
    spec = InputSpec("table", (m,), tuple(range(10, 10 + k)))
    assert categorical_columns(spec) == list(range(m, m + k))
    assert categorical_columns(spec, most=11) == list(range(m, m + min(k, 2)))


def test_an_array_has_no_categorical_columns():
    assert categorical_columns(InputSpec("array", (3, 8, 8))) == []


def test_a_class_without_training_samples_gets_probability_zero():
    seen = Y != 1
    classifier = LogisticRegression().fit(X[seen], Y[seen])
    logits = ProbaTeacher(classifier, num_classes=4)(torch.from_numpy(X))
    probs = logits.softmax(dim=-1).numpy()
    np.testing.assert_allclose(probs[:, [0, 2]], classifier.predict_proba(X), rtol=1e-4, atol=1e-7)
    assert bool(logits.isfinite().all())
    assert probs[:, [1, 3]].max() < 1e-30


@pytest.mark.parametrize(
    ("classes", "num_classes"),
    [(["a", "b"], None), ([1, 2], None), ([0, 2], 2), ([0, 1, 2], 2), ([-1, 1], None), ([0.5, 1], 3), ([[0, 1]], None)],
)
def test_classes_that_are_not_class_indices_are_refused(classes, num_classes):
    with pytest.raises(InputError, match=re.escape(str(np.asarray(classes).tolist()[-1]))):
        ProbaTeacher(Fixed([[0.5, 0.5]], classes), num_classes=num_classes)


def test_names_of_classes_can_be_given_their_indices():
    names = np.array(["iris b", "iris c", "iris a"])
    classifier = GaussianNB().fit(X, names[Y])
    teacher = ProbaTeacher(classifier, classes=[2, 0, 1])  # of a, b, c
    expected = GaussianNB().fit(X, Y).predict_proba(X)
    np.testing.assert_allclose(teacher(torch.from_numpy(X)).softmax(dim=-1).numpy(), expected, rtol=1e-4, atol=1e-7)
    for wrong in ([0, 1], [0, 1, 1]):
        with pytest.raises(InputError, match=rf"classes .*{wrong[-1]}\]"):
            ProbaTeacher(classifier, classes=wrong)
    with pytest.raises(InputError, match="0, 1, 3"):
        ProbaTeacher(classifier, classes=[0, 1, 3])


def test_only_fitted_classifiers_with_predict_proba_are_accepted():
    with pytest.raises(InputError, match=r"LinearSVC .*predict_proba"):
        ProbaTeacher(LinearSVC().fit(X, Y))
    with pytest.raises(InputError, match=r"GaussianNB .*classes_"):
        ProbaTeacher(GaussianNB())


@pytest.mark.parametrize(
    ("probs", "match"),
    [
        ([[0.5, 0.5], [np.nan, 0.5]], "Fixed: .*row 1 .*nan"),
        ([[2.0, -1.0], [0.5, 0.5]], "Fixed: .*row 0"),
        ([[0.5, 0.5]], r"\(1, 2\).*\(2, 2\)"),
        ([[0.2, 0.3, 0.5]] * 2, r"\(2, 3\).*\(2, 2\)"),
    ],
)
def test_rows_that_are_not_distributions_are_refused(probs, match):
    with pytest.raises(InputError, match=match):
        ProbaTeacher(Fixed(probs))(torch.zeros(2, 4))


def test_stored_predictions_of_a_classifier_are_found_by_id():
    classifier = GaussianNB().fit(X, Y)
    ids = torch.randperm(1000)[: len(X)]
    loader = DataLoader(ArrayDataset(torch.from_numpy(X), torch.from_numpy(Y), ids), 32, shuffle=True)
    stored = StoredPredictions.from_teacher(ProbaTeacher(classifier), loader)
    np.testing.assert_allclose(
        stored.lookup(ids).softmax(dim=-1).numpy(), classifier.predict_proba(X), rtol=1e-4, atol=1e-7
    )


# ---- classes and columns by name

NAMES = ("setosa", "versicolor", "virginica")
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_classes_are_found_by_name(order):
    names = [NAMES[c] for c in order]
    classifier = GaussianNB().fit(X, np.array(NAMES)[Y])
    teacher = ProbaTeacher(classifier, class_names=names)
    assert teacher.num_classes == 3
    found = teacher(torch.from_numpy(X)).softmax(dim=-1)
    np.testing.assert_allclose(found.numpy(), classifier.predict_proba(X)[:, order], rtol=1e-4, atol=1e-7)


def test_a_class_without_training_samples_is_found_by_name_too():
    teacher = ProbaTeacher(GaussianNB().fit(X[50:], np.array(NAMES)[Y[50:]]), class_names=("virginica", *NAMES[:2]))
    assert teacher.classes.tolist() == [2, 0]
    assert teacher(torch.from_numpy(X)).argmax(dim=-1).bincount(minlength=3)[1] == 0


def test_numbers_are_names_where_the_classes_are_named_so():
    teacher = ProbaTeacher(Fixed([[0.2, 0.8]], classes=[1, 2]), class_names=("1", "2", "3"))
    assert teacher(torch.zeros(1, 1)).argmax().item() == 1
    assert ProbaTeacher(Fixed([[0.2, 0.8]], classes=[0, 1]), class_names=("cat", "dog")).classes.tolist() == [0, 1]


def test_unknown_names_are_refused():
    classifier = GaussianNB().fit(X, np.array(NAMES)[Y])
    with pytest.raises(InputError, match="class_names"):
        ProbaTeacher(classifier)
    with pytest.raises(InputError, match="virginica"):
        ProbaTeacher(classifier, class_names=("setosa", "versicolor", "other"))
    with pytest.raises(InputError, match=r"2 class names .* 3"):
        ProbaTeacher(GaussianNB().fit(X, Y), num_classes=3, class_names=("a", "b"))


def test_raw_columns_are_given_by_name_or_refused():
    frame = pl.DataFrame(dict(zip(COLUMNS, X.T, strict=True)))
    shuffled = frame.select([COLUMNS[i] for i in (2, 0, 3, 1)])
    classifier = HistGradientBoostingClassifier(max_iter=3).fit(shuffled, Y)
    expected = classifier.predict_proba(shuffled)
    with pytest.raises(InputError, match=r"petal length.*feature_names.*from_classifier"):
        ProbaTeacher(classifier)
    found = ProbaTeacher(classifier, feature_names=COLUMNS)(torch.from_numpy(X)).softmax(dim=-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="petal width"):
        ProbaTeacher(classifier, feature_names=COLUMNS[:3])
    with pytest.raises(InputError, match=r"takes 4 columns.* 3"):
        ProbaTeacher(classifier, feature_names=COLUMNS)(torch.from_numpy(X[:, :3]))


def test_a_table_of_raw_columns_becomes_stored_predictions():
    frame = pl.DataFrame({"id": range(150), **dict(zip(COLUMNS, X.T, strict=True))})
    classifier = HistGradientBoostingClassifier(max_iter=3).fit(frame.select(COLUMNS), np.array(NAMES)[Y])
    stored = StoredPredictions.from_classifier(classifier, frame, class_names=NAMES[::-1])
    expected = classifier.predict_proba(frame.select(COLUMNS))[:, ::-1]
    np.testing.assert_allclose(stored.lookup(torch.arange(150)).softmax(dim=-1).numpy(), expected, rtol=1e-4, atol=1e-7)
    assert stored.class_names == NAMES[::-1]
    other = StoredPredictions.from_classifier(classifier, frame[:2], torch.tensor([9, 4]), class_names=NAMES)
    assert other.ids.tolist() == [9, 4]
    with pytest.raises(InputError, match="petal width"):
        StoredPredictions.from_classifier(classifier, frame.drop("petal width"), class_names=NAMES)
    with pytest.raises(InputError, match="feature_names_in_"):
        StoredPredictions.from_classifier(GaussianNB().fit(X, Y), frame)


def test_another_number_of_columns_is_one_error():
    with pytest.raises(InputError, match=r"takes 4 columns.* 2"):
        ProbaTeacher(GaussianNB().fit(X, Y))(torch.from_numpy(X[:, :2]))
