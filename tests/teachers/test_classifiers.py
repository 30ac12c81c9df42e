"""Classifiers by name: fitted on the training set, stopped early on the validation set; the test set is not used."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import numpy as np
import polars as pl
import pytest
import torch
from realdata import data_dir
from torch.utils.data import TensorDataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.tasks.digits import digits
from tgeokd.teachers import CLASSIFIERS, fit_classifier
from tgeokd.teachers.proba import as_columns
from tgeokd.utils.errors import InputError

QUICK = {
    "hist_gradient_boosting": {"max_iter": 20},
    "random_forest": {"n_estimators": 20},
    "logistic_regression": {},
    "lightgbm": {"n_estimators": 60},
    "xgboost": {"n_estimators": 60},
}
BOOSTING = ("lightgbm", "xgboost")

ROWS = {"train": 2000, "held_out": 500, "test": 1000}


def adult() -> TaskData:
    """Rows of Adult in file order, encoded by hand: code 0 missing, 1 unknown, then the values in order of the alphabet."""
    frame = pl.read_parquet(data_dir() / "adult" / "adult.parquet").head(sum(ROWS.values()))
    target = torch.from_numpy((frame["income-per-year"] == ">50K").to_numpy().astype(np.int64))
    frame = frame.drop("income-per-year")
    numbers = frame.select(pl.selectors.numeric())
    words = frame.select(pl.selectors.string())
    codes, sizes = [], []
    for column in words:
        values = sorted(column.drop_nulls().unique())
        codes.append([0 if value is None else 2 + values.index(value) for value in column])
        sizes.append(2 + len(values))
    numeric = torch.from_numpy(numbers.to_numpy().astype(np.float32))
    categorical = torch.tensor(codes).T.contiguous()
    splits, first = {}, 0
    for name, count in ROWS.items():
        rows = slice(first, first + count)
        splits[name] = ArrayDataset(
            (numeric[rows], categorical[rows]), target[rows], torch.arange(first, first + count)
        )
        first += count
    return TaskData(**splits, num_classes=2, inputs=InputSpec("table", (numeric.shape[1],), tuple(sizes)))


def fit(name: str, data: TaskData, *, seed: int = 0, **options):
    if name in BOOSTING:
        pytest.importorskip(name, reason=f"{name} is not installed")
    return fit_classifier(name, QUICK[name] | options, data, seed)


def accuracy(teacher, split: ArrayDataset) -> float:
    inputs = split.inputs if isinstance(split.inputs, tuple) else (split.inputs,)
    return float((teacher(*inputs).argmax(dim=-1) == split.target).float().mean())


@pytest.fixture(scope="module")
def table() -> TaskData:
    return adult()


@pytest.fixture(scope="module")
def images() -> TaskData:
    return digits(seed=0, train=400, held_out=100)


@pytest.mark.realdata
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_real_table_is_learnt(name, table):
    teacher = fit(name, table)
    majority = max(np.bincount(table.test.target)) / len(table.test)
    assert majority < 0.8
    assert accuracy(teacher, table.test) > majority + 0.04


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_arrays_are_learnt(name, images):
    assert accuracy(fit(name, images), images.test) > 0.8


@pytest.mark.realdata
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_logits_are_those_of_predict_proba(name, table):
    teacher = fit(name, table)
    found = teacher(*table.test.inputs).softmax(dim=-1).numpy()
    expected = teacher.classifier.predict_proba(as_columns(*table.test.inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.realdata
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_same_seed_gives_the_same_teacher_and_the_test_set_is_not_used(name, table):
    # labels and inputs of the test set are replaced: a classifier that used them would differ
    other = ArrayDataset(tuple(torch.zeros_like(tensor) for tensor in table.test.inputs), 1 - table.test.target)
    teachers = [fit(name, data, seed=3) for data in (table, dataclasses.replace(table, test=other))]
    first, second = (teacher(*table.test.inputs) for teacher in teachers)
    assert torch.equal(first, second)


@pytest.mark.realdata
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in BOOSTING])
def test_classifiers_without_early_stopping_on_it_do_not_use_the_validation_set(name, table):
    flipped = ArrayDataset(table.held_out.inputs, 1 - table.held_out.target, table.held_out.ids)
    first, second = (
        fit(name, data)(*table.test.inputs) for data in (table, dataclasses.replace(table, held_out=flipped))
    )
    assert torch.equal(first, second)


@pytest.mark.realdata
@pytest.mark.parametrize("name", BOOSTING)
def test_boosting_stops_early_on_the_validation_set(name, table):
    """With flipped validation labels every tree increases the loss, so almost none is kept."""
    flipped = ArrayDataset(table.held_out.inputs, 1 - table.held_out.target, table.held_out.ids)

    def trees(data):
        classifier = fit(name, data, patience=5).classifier
        return classifier.best_iteration_ if name == "lightgbm" else classifier.best_iteration + 1

    assert trees(dataclasses.replace(table, held_out=flipped)) <= 2
    assert trees(table) > 10


def only(data: TaskData, *, train=None, held_out=None) -> TaskData:
    """The task with samples of some classes only."""
    splits = {}
    for name, classes in (("train", train), ("held_out", held_out)):
        split = getattr(data, name)
        rows = torch.isin(split.target, torch.tensor(classes or range(data.num_classes)))
        splits[name] = ArrayDataset(split.inputs[rows], split.target[rows])
    return dataclasses.replace(data, **splits)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_without_training_samples_gets_no_probability(name, images):
    teacher = fit(name, only(images, train=[0, 1, 2, 4, 5, 6, 7, 8, 9]))
    probs = teacher(images.test.inputs).softmax(dim=-1)
    assert probs.shape == (len(images.test), 10)
    assert float(probs[:, 3].max()) < 1e-30
    assert accuracy(teacher, images.test) > 0.75


@pytest.mark.parametrize("name", BOOSTING)
def test_a_gap_in_the_classes_does_not_shift_the_validation_labels(name, images):
    """Without class 0 of 0 to 9, or without class 9, many trees are kept, unless the validation labels are shifted by one."""
    options = {"n_estimators": 100, "learning_rate": 0.2, "patience": 5}
    for left_out in (0, 9):
        classes = [c for c in range(10) if c != left_out]
        classifier = fit(name, only(images, train=classes), **options).classifier
        kept = classifier.best_iteration_ if name == "lightgbm" else classifier.best_iteration + 1
        assert kept > 10


@pytest.mark.parametrize("name", BOOSTING)
def test_a_validation_set_of_other_classes_is_refused(name, images):
    with pytest.raises(InputError, match=rf"'{name}'.*validation"):
        fit(name, only(images, train=[0, 1], held_out=[2, 3]))


@pytest.mark.parametrize("name", ["hist_gradient_boosting", *BOOSTING])
def test_codes_are_treated_as_categories(name, images):
    """The class is the parity of a code: one split on a set of codes suffices, one split on a number does not."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, 12, (3000, 1), generator=generator)
    target = codes[:, 0] % 2
    splits = [ArrayDataset((torch.zeros(1000, 0), codes[i : i + 1000]), target[i : i + 1000]) for i in (0, 1000, 2000)]
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(12,))
    data = TaskData(*splits, num_classes=2, inputs=spec)
    stump = {
        "hist_gradient_boosting": {"max_iter": 1, "max_leaf_nodes": 2},
        "lightgbm": {"n_estimators": 1, "num_leaves": 2},
        "xgboost": {"n_estimators": 1, "max_depth": 1},
    }
    teacher = fit(name, data, **stump[name])
    assert accuracy(teacher, data.test) == 1.0


def test_logistic_regression_encodes_codes_as_one_hot(images):
    codes = torch.arange(2, 12).repeat(60)[:, None]
    split = ArrayDataset((torch.zeros(600, 0), codes), codes[:, 0] % 2)
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(12,))
    teacher = fit("logistic_regression", TaskData(split, split, split, num_classes=2, inputs=spec))
    assert accuracy(teacher, split) == 1.0
    unseen = teacher(torch.zeros(1, 0), torch.tensor([[1]])).softmax(dim=-1)
    assert float(unseen.max()) < 0.6


def test_scikit_learns_boosting_treats_many_codes_as_numeric(images):
    codes = torch.arange(1000)[:, None]
    split = ArrayDataset((torch.zeros(1000, 0), codes), (codes[:, 0] >= 500).long())
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(1000,))
    teacher = fit("hist_gradient_boosting", TaskData(split, split, split, num_classes=2, inputs=spec))
    assert accuracy(teacher, split) > 0.98


# ---- refused


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("randomforest", {}, "'randomforest'.*'random_forest'"),
        ("random_forest", {"n_estimator": 3}, "'n_estimator'.*'n_estimators'"),
        ("random_forest", {"n_estimators": "many"}, "n_estimators.*int.*'many'"),
        ("random_forest", {"seed": 3}, "seed"),
    ],
)
def test_unknown_names_and_wrong_options_are_refused(images, name, options, named):
    with pytest.raises(InputError, match=named):
        fit_classifier(name, options, images, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random_forest", {"n_estimators": 0}),
        ("logistic_regression", {"C": -1.0}),
        ("hist_gradient_boosting", {"max_iter": 0}),
        ("lightgbm", {"num_leaves": 1}),
        ("xgboost", {"learning_rate": -1.0}),
    ],
)
def test_an_option_that_the_library_rejects_is_an_error_of_one_line(name, options, images):
    with pytest.raises(InputError, match=f"classifier '{name}'") as caught:
        fit(name, images, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOOSTING)
def test_a_missing_library_is_named_with_its_extra(name, images, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"'{name}' .*tgeokd\[boosting\]"):
        fit_classifier(name, {}, images, 0)


def test_data_other_than_plain_arrays_is_refused(images):
    train = TensorDataset(images.train.inputs, images.train.target)
    with pytest.raises(InputError, match=r"training .*TensorDataset"):
        fit("random_forest", dataclasses.replace(images, train=train))
    augmented = ArrayDataset(images.train.inputs, images.train.target, transform=torch.flip)
    with pytest.raises(InputError, match=r"training .*transform|transform.* training"):
        fit("random_forest", dataclasses.replace(images, train=augmented))


def test_every_option_has_a_type_and_a_default():
    for make in CLASSIFIERS.values():
        parameters = dict(inspect.signature(make).parameters)
        assert all(
            parameters.pop(fixed).default is inspect.Parameter.empty for fixed in ("inputs", "num_classes", "seed")
        )
        for option in parameters.values():
            assert inspect.Parameter.empty not in (option.default, option.annotation), option
