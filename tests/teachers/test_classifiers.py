"""Classifiers by name: fitted on the training part, stopped on the held-out part, and never near the test part."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import polars as pl
import pytest
import torch
from realdata import data_dir
from torch.utils.data import TensorDataset

from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.data.tasks.digits import digits
from tgeokd.teachers import CLASSIFIERS, classifiers, fit_classifier
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
    parts, first = {}, 0
    for name, rows in ROWS.items():
        part = slice(first, first + rows)
        parts[name] = ArrayDataset((numeric[part], categorical[part]), target[part], torch.arange(first, first + rows))
        first += rows
    return TaskData(**parts, num_classes=2, inputs=InputSpec("table", (numeric.shape[1],), tuple(sizes)))


def fit(name: str, data: TaskData, *, seed: int = 0, **options):
    if name in BOOSTING:
        pytest.importorskip(name, reason=f"{name} is not installed")
    return fit_classifier(name, QUICK[name] | options, data, seed)


def accuracy(teacher, part: ArrayDataset) -> float:
    inputs = part.inputs if isinstance(part.inputs, tuple) else (part.inputs,)
    return float((teacher(*inputs).argmax(dim=-1) == part.target).float().mean())


@pytest.fixture(scope="module")
def table() -> TaskData:
    return adult()


@pytest.fixture(scope="module")
def images() -> TaskData:
    return digits(seed=0, train=400, held_out=100)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_real_table_is_learnt(name, table):
    teacher = fit(name, table)
    majority = max(np.bincount(table.test.target)) / len(table.test)
    assert majority < 0.8
    assert accuracy(teacher, table.test) > majority + 0.04


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_arrays_are_learnt(name, images):
    assert accuracy(fit(name, images), images.test) > 0.8


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_logits_are_those_of_predict_proba(name, table):
    teacher = fit(name, table)
    found = teacher(*table.test.inputs).softmax(dim=-1).numpy()
    expected = teacher.classifier.predict_proba(as_columns(*table.test.inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_same_seed_gives_the_same_teacher_and_the_test_part_is_not_seen(name, table):
    # labels and inputs of the test part replaced: a teacher that looked at them would differ
    other = ArrayDataset(tuple(torch.zeros_like(part) for part in table.test.inputs), 1 - table.test.target)
    teachers = [fit(name, data, seed=3) for data in (table, dataclasses.replace(table, test=other))]
    first, second = (teacher(*table.test.inputs) for teacher in teachers)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in BOOSTING])
def test_what_cannot_be_given_a_held_out_part_does_not_see_it(name, table):
    flipped = ArrayDataset(table.held_out.inputs, 1 - table.held_out.target, table.held_out.ids)
    first, second = (
        fit(name, data)(*table.test.inputs) for data in (table, dataclasses.replace(table, held_out=flipped))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", BOOSTING)
def test_boosting_stops_on_the_held_out_part(name, table):
    """On flipped held-out labels every tree makes the loss worse, so almost none is kept."""
    flipped = ArrayDataset(table.held_out.inputs, 1 - table.held_out.target, table.held_out.ids)

    def trees(data):
        classifier = fit(name, data, patience=5).classifier
        return classifier.best_iteration_ if name == "lightgbm" else classifier.best_iteration + 1

    assert trees(dataclasses.replace(table, held_out=flipped)) <= 2
    assert trees(table) > 10


def only(data: TaskData, *, train=None, held_out=None) -> TaskData:
    """The task with samples of some classes alone."""
    parts = {}
    for name, classes in (("train", train), ("held_out", held_out)):
        part = getattr(data, name)
        rows = torch.isin(part.target, torch.tensor(classes)) if classes else torch.ones(len(part), dtype=torch.bool)
        parts[name] = ArrayDataset(part.inputs[rows], part.target[rows])
    return dataclasses.replace(data, **parts)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_without_training_samples_gets_no_probability(name, images):
    teacher = fit(name, only(images, train=[0, 1, 2, 4, 5, 6, 7, 8, 9]))
    probs = teacher(images.test.inputs).softmax(dim=-1)
    assert probs.shape == (len(images.test), 10)
    assert float(probs[:, 3].max()) < 1e-30
    assert accuracy(teacher, images.test) > 0.75


@pytest.mark.parametrize("name", BOOSTING)
def test_a_gap_in_the_classes_does_not_shift_the_held_out_labels(name, images):
    """Class 0 of 0 to 9 left out, or class 9: as many trees are kept, or the held-out labels were read one off."""
    options = {"n_estimators": 100, "learning_rate": 0.2, "patience": 5}
    for left_out in (0, 9):
        classes = [c for c in range(10) if c != left_out]
        classifier = fit(name, only(images, train=classes), **options).classifier
        kept = classifier.best_iteration_ if name == "lightgbm" else classifier.best_iteration + 1
        assert kept > 10


@pytest.mark.parametrize("name", BOOSTING)
def test_a_held_out_part_of_other_classes_is_refused(name, images):
    with pytest.raises(InputError, match="none is of a class in the training part"):
        fit(name, only(images, train=[0, 1], held_out=[2, 3]))


@pytest.mark.parametrize("name", ["hist_gradient_boosting", *BOOSTING])
def test_categories_are_categories(name, images):
    """Classes by the parity of a code: one split on a set of codes, but hopeless for one split on a number."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, 12, (3000, 1), generator=generator)
    target = codes[:, 0] % 2
    parts = [ArrayDataset((torch.zeros(1000, 0), codes[i : i + 1000]), target[i : i + 1000]) for i in (0, 1000, 2000)]
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(12,))
    data = TaskData(*parts, num_classes=2, inputs=spec)
    stump = {
        "hist_gradient_boosting": {"max_iter": 1, "max_leaf_nodes": 2},
        "lightgbm": {"n_estimators": 1, "num_leaves": 2},
        "xgboost": {"n_estimators": 1, "max_depth": 1},
    }
    teacher = fit(name, data, **stump[name])
    assert accuracy(teacher, data.test) == 1.0


def test_logistic_regression_takes_codes_apart(images):
    codes = torch.arange(2, 12).repeat(60)[:, None]
    part = ArrayDataset((torch.zeros(600, 0), codes), codes[:, 0] % 2)
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(12,))
    teacher = fit("logistic_regression", TaskData(part, part, part, num_classes=2, inputs=spec))
    assert accuracy(teacher, part) == 1.0
    unseen = teacher(torch.zeros(1, 0), torch.tensor([[1]])).softmax(dim=-1)
    assert float(unseen.max()) < 0.6  # nothing is known of it


def test_many_codes_are_numbers_to_scikit_learns_boosting(images):
    codes = torch.arange(1000)[:, None]
    part = ArrayDataset((torch.zeros(1000, 0), codes), (codes[:, 0] >= 500).long())
    spec = dataclasses.replace(images.inputs, kind="table", shape=(0,), categories=(1000,))
    teacher = fit("hist_gradient_boosting", TaskData(part, part, part, num_classes=2, inputs=spec))
    assert accuracy(teacher, part) > 0.98


# ---- refused


def test_unknown_names_and_wrong_options_are_refused(images):
    with pytest.raises(InputError, match=r"unknown classifier 'randomforest'; did you mean 'random_forest'\?"):
        fit_classifier("randomforest", {}, images, 0)
    with pytest.raises(InputError, match=r"unknown option of classifier 'random_forest' 'n_estimator'.*'n_estimators'"):
        fit_classifier("random_forest", {"n_estimator": 3}, images, 0)
    with pytest.raises(InputError, match="n_estimators of classifier 'random_forest' must be of type int"):
        fit_classifier("random_forest", {"n_estimators": "many"}, images, 0)
    with pytest.raises(InputError, match="seed"):
        fit_classifier("random_forest", {"seed": 3}, images, 0)


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
def test_what_a_library_refuses_is_one_line(name, options, images):
    with pytest.raises(InputError, match=f"classifier '{name}' cannot be fitted") as caught:
        fit(name, images, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOOSTING)
def test_a_missing_library_is_named_with_its_installation(name, images, monkeypatch):
    def missing(wanted):
        raise ImportError(wanted)

    monkeypatch.setattr(classifiers.importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"classifier '{name}' .*pip install 'tgeokd\[boosting\]'"):
        fit_classifier(name, {}, images, 0)


def test_data_that_is_no_plain_array_is_refused(images):
    train = TensorDataset(images.train.inputs, images.train.target)
    with pytest.raises(InputError, match="in memory as arrays, not as TensorDataset"):
        fit("random_forest", dataclasses.replace(images, train=train))
    augmented = ArrayDataset(images.train.inputs, images.train.target, transform=torch.flip)
    with pytest.raises(InputError, match="transforms its training samples"):
        fit("random_forest", dataclasses.replace(images, train=augmented))


def test_every_option_has_a_type_and_a_default():
    for name, make in CLASSIFIERS.items():
        parameters = dict(inspect.signature(make).parameters)
        assert [parameters.pop(fixed).default for fixed in ("inputs", "num_classes", "seed")] == [
            inspect.Parameter.empty
        ] * 3
        for option in parameters.values():
            assert option.default is not inspect.Parameter.empty, f"{name}: {option}"
            assert option.annotation is not inspect.Parameter.empty, f"{name}: {option}"
