"""Out-of-fold teachers against scikit-learn's, and what they are for: a memorised wrong label says nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick import short
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from tgeokd.runs.build import build_teacher_network, load_data, teacher_seed
from tgeokd.runs.single import check, run
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError

FOREST = "teacher.model={name: random_forest, n_estimators: 12, min_samples_leaf: 1}"


def built(config, tmp_path):
    data = load_data(config)
    check(config, data)
    build_teacher(config, data, tmp_path / "teacher.safetensors")
    return data, load_teacher(config, data, tmp_path / "teacher.safetensors")


def test_a_classifier_s_predictions_are_scikit_learn_s(tmp_path):
    config = short(FOREST, "teacher.folds=3", "data.noise=0.3", "method=kd")
    data, stored = built(config, tmp_path)
    seed = teacher_seed(config)
    forest = RandomForestClassifier(12, min_samples_leaf=1, random_state=seed)
    x, y = data.train.inputs.numpy(), data.train.target.numpy()
    splits = StratifiedKFold(3, shuffle=True, random_state=seed)
    expected = cross_val_predict(forest, x, y, cv=splits, method="predict_proba")
    found = stored.lookup(data.train.ids).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for part in (data.held_out, data.test):
        probs = forest.fit(x, y).predict_proba(part.inputs.numpy())
        np.testing.assert_allclose(stored.lookup(part.ids).softmax(dim=1).numpy(), probs, atol=1e-6)
    wrong = data.corrupted
    agrees = stored.lookup(data.train.ids).argmax(dim=1) == data.train.target
    assert agrees[wrong].float().mean() < 0.2  # a forest of single leaves has memorised nearly all of them
    assert (forest.predict(x) == y)[wrong.numpy()].mean() > 0.9


def test_a_network_is_trained_without_each_fold_and_a_student_learns_from_it(tmp_path):
    config = short("teacher.folds=2", "teacher.epochs=20", "student.epochs=10", "method=tgeo")
    data, stored = built(config, tmp_path)
    assert isinstance(stored, StoredPredictions)
    assert len(stored) == len(data.train) + len(data.held_out) + len(data.test)
    whole = short("teacher.epochs=20", "method=tgeo")
    build_teacher(whole, data, tmp_path / "whole.safetensors")
    network = load_teacher(whole, data, tmp_path / "whole.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(stored.lookup(data.test.ids), network(data.test.inputs))
        assert not torch.allclose(stored.lookup(data.train.ids), network(data.train.inputs), atol=1e-3)
    assert isinstance(build_teacher_network(config, data), torch.nn.Module)
    assert run(config, tmp_path / "teacher.safetensors", tmp_path / "run").metrics["accuracy"] > 0.5


def test_a_class_with_fewer_samples_than_folds_is_named(tmp_path):
    config = short(FOREST, "teacher.folds=60", "method=kd")
    with pytest.raises(InputError, match=r"teacher\.folds=60"):
        built(config, tmp_path)


@pytest.mark.parametrize("given", ["teacher.weights=a.safetensors", "teacher={predictions: a.npz, folds: 2}"])
def test_folds_are_for_teachers_that_are_trained_here(given):
    with pytest.raises(InputError, match="folds"):
        check(short("teacher.folds=2", given))
