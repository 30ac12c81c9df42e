"""Classifiers with ``predict_proba`` by name, for configs: fitted on the training part of a task, then used as teachers.

Their libraries are imported when one is asked for, so that ``import tgeokd`` stays quick.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.teachers.proba import ProbaTeacher, as_columns, categorical_columns
from tgeokd.utils.errors import InputError
from tgeokd.utils.registry import look_up
from tgeokd.utils.validation import call_validated

__all__ = [
    "CLASSIFIERS",
    "fit_classifier",
    "hist_gradient_boosting",
    "lightgbm",
    "logistic_regression",
    "random_forest",
    "xgboost",
]

Columns = tuple[NDArray[np.float32], NDArray[np.int64]]


def hist_gradient_boosting(
    *,
    inputs: InputSpec,
    num_classes: int,
    seed: int,
    max_iter: int = 300,
    learning_rate: float = 0.1,
    max_leaf_nodes: int = 31,
    min_samples_leaf: int = 20,
    early_stopping: bool = True,
) -> Any:
    """Gradient boosting of scikit-learn.

    Early stopping watches a tenth of the **training** samples that it splits off by itself and does not train on: not every
    scikit-learn this package works with can be given the held-out part. Categorical columns with more than 255 codes are
    treated as numbers.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=max_iter,
        learning_rate=learning_rate,
        max_leaf_nodes=max_leaf_nodes,
        min_samples_leaf=min_samples_leaf,
        early_stopping=early_stopping,
        categorical_features=categorical_columns(inputs, most=255) or None,
        random_state=seed,
    )


def random_forest(
    *,
    inputs: InputSpec,
    num_classes: int,
    seed: int,
    n_estimators: int = 200,
    max_depth: int | None = None,
    min_samples_leaf: int = 5,
) -> Any:
    """Random forest of scikit-learn; codes of categories are treated as numbers.

    Leaves hold at least 5 samples by default: trees grown to single samples give their training samples their own labels
    back, and a student has nothing to learn from that.
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=n_estimators,
        max_depth=max_depth,
        min_samples_leaf=min_samples_leaf,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )


def logistic_regression(*, inputs: InputSpec, num_classes: int, seed: int, C: float = 1.0, max_iter: int = 1000) -> Any:
    """Logistic regression of scikit-learn on standardised numbers and one-hot categories; unseen categories are all zeros.

    Args:
        inputs: of the task.
        num_classes: C.
        seed: not used; the fit is not random.
        C: the smaller, the stronger the L2 penalty.
        max_iter: of the solver.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = categorical_columns(inputs)
    prepared = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", dtype=np.float32), columns), remainder=StandardScaler()
    )
    return make_pipeline(prepared, LogisticRegression(C=C, max_iter=max_iter))


def lightgbm(
    *,
    inputs: InputSpec,
    num_classes: int,
    seed: int,
    n_estimators: int = 500,
    learning_rate: float = 0.05,
    num_leaves: int = 31,
    min_child_samples: int = 20,
    patience: int = 20,
) -> Any:
    """LightGBM; stops when the held-out log loss has not fallen for ``patience`` trees. The same seed gives the same trees."""
    return _library("lightgbm").LGBMClassifier(
        n_estimators=n_estimators,
        learning_rate=learning_rate,
        num_leaves=num_leaves,
        min_child_samples=min_child_samples,
        early_stopping_rounds=patience,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
        deterministic=True,
        force_row_wise=True,  # otherwise chosen by a timing, and the choice changes the sums
        verbosity=-1,
    )


def xgboost(
    *,
    inputs: InputSpec,
    num_classes: int,
    seed: int,
    n_estimators: int = 500,
    learning_rate: float = 0.1,
    max_depth: int = 6,
    patience: int = 20,
) -> Any:
    """XGBoost; stops when the held-out log loss has not fallen for ``patience`` trees."""
    columns = set(categorical_columns(inputs))
    width = math.prod(inputs.shape) + len(inputs.categories)
    return _library("xgboost").XGBClassifier(
        n_estimators=n_estimators,
        learning_rate=learning_rate,
        max_depth=max_depth,
        early_stopping_rounds=patience,
        tree_method="hist",
        enable_categorical=True,
        feature_types=["c" if column in columns else "q" for column in range(width)],
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )


CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "hist_gradient_boosting": hist_gradient_boosting,
    "random_forest": random_forest,
    "logistic_regression": logistic_regression,
    "lightgbm": lightgbm,
    "xgboost": xgboost,
}


def fit_classifier(name: str, options: Mapping[str, Any], data: TaskData, seed: int) -> ProbaTeacher:
    """Fit a classifier on the training part of a task.

    LightGBM and XGBoost choose their number of trees on the held-out part, like a network with early stopping; the others see
    the training part alone. None sees the test part.

    Args:
        name: a key of :data:`CLASSIFIERS`.
        options: of the classifier.
        data: tables, or arrays, which are flattened.
        seed: of everything random.

    Raises:
        InputError: for an unknown name or option, a library that is not installed, data that is not held in arrays or is
            augmented, and whatever the library refuses, in one line.
    """
    make = look_up("classifier", name, CLASSIFIERS)
    what = f"classifier {name!r}"
    classifier = call_validated(what, make, options, inputs=data.inputs, num_classes=data.num_classes, seed=seed)
    x, y = _columns_of(data.train, "training", what)
    classes, codes = np.unique(y, return_inverse=True)  # XGBoost and LightGBM's validation want labels without a gap
    arguments = _watching(name, data, classes, what) if name in ("lightgbm", "xgboost") else {}
    refusals = (ValueError, _library(name).basic.LightGBMError) if name == "lightgbm" else (ValueError,)
    try:
        classifier.fit(x, codes, **arguments)
    except refusals as error:
        raise InputError(f"{what} cannot be fitted: {str(error).splitlines()[0]}") from error
    return ProbaTeacher(classifier, num_classes=data.num_classes, classes=classes.tolist())


def _watching(name: str, data: TaskData, classes: NDArray[np.int64], what: str) -> dict[str, Any]:
    """Arguments of ``fit`` with which a library watches the held-out part, its labels numbered among ``classes``."""
    x, y = _columns_of(data.held_out, "held-out", what)
    seen = np.isin(y, classes)  # neither library can score a class that it has no trees for
    if not seen.any():
        raise InputError(f"{what} stops early on held-out samples, but none is of a class in the training part")
    x, codes = x[seen], np.searchsorted(classes, y[seen])
    if name == "lightgbm":
        return {"eval_X": x, "eval_y": codes, "categorical_feature": categorical_columns(data.inputs)}
    return {"eval_set": [(x, codes)], "verbose": False}


def _columns_of(dataset: Dataset[Any], part: str, what: str) -> Columns:
    """The samples of a data set as columns, and their labels."""
    if not isinstance(dataset, ArrayDataset):
        raise InputError(f"{what} needs the {part} samples in memory as arrays, not as {type(dataset).__name__}")
    if dataset.transform is not None:
        raise InputError(
            f"{what} takes tables and plain arrays, but this task transforms its {part} samples on the fly"
        )
    inputs = dataset.inputs if isinstance(dataset.inputs, tuple) else (dataset.inputs,)
    return as_columns(*inputs), dataset.target.numpy()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"classifier {name!r} needs a library: pip install 'tgeokd[boosting]'") from error
