"""Classifiers with ``predict_proba`` by name, fitted on the training set of a task. Their libraries are imported when used."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.teachers.proba import ProbaTeacher, as_columns, categorical_columns
from tgeokd.teachers.registry import CLASSIFIERS
from tgeokd.utils.errors import InputError, first_line, optional_import
from tgeokd.utils.validation import call_validated


@CLASSIFIERS.register("hist_gradient_boosting")
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
    """Gradient boosting of scikit-learn. Categorical columns with more than 255 codes are treated as numeric.

    Early stopping monitors a tenth of the **training** samples, which scikit-learn splits off: not every supported version
    accepts a validation set.
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


@CLASSIFIERS.register("random_forest")
def random_forest(
    *,
    inputs: InputSpec,
    num_classes: int,
    seed: int,
    n_estimators: int = 200,
    max_depth: int | None = None,
    min_samples_leaf: int = 5,
) -> Any:
    """Random forest of scikit-learn; category codes are treated as numeric.

    Trees with single-sample leaves would reproduce the training labels, from which a student learns nothing new.
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=n_estimators,
        max_depth=max_depth,
        min_samples_leaf=min_samples_leaf,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )


@CLASSIFIERS.register("logistic_regression")
def logistic_regression(*, inputs: InputSpec, num_classes: int, seed: int, C: float = 1.0, max_iter: int = 1000) -> Any:
    """Logistic regression of scikit-learn on standardised numeric columns and one-hot categories.

    Unknown categories are encoded as zeros. ``C`` is the inverse of the L2 penalty. The seed is not used.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    one_hot = OneHotEncoder(handle_unknown="ignore", dtype=np.float32)
    encoder = make_column_transformer((one_hot, categorical_columns(inputs)), remainder=StandardScaler())
    return make_pipeline(encoder, LogisticRegression(C=C, max_iter=max_iter))


@CLASSIFIERS.register("lightgbm")
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
    """LightGBM; stops when the validation log loss has not decreased for ``patience`` trees. Deterministic for a seed."""
    return optional_import("lightgbm", "classifier 'lightgbm'").LGBMClassifier(
        n_estimators=n_estimators,
        learning_rate=learning_rate,
        num_leaves=num_leaves,
        min_child_samples=min_child_samples,
        early_stopping_rounds=patience,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
        deterministic=True,
        force_row_wise=True,  # otherwise chosen by a timing, which changes the order of sums
        verbosity=-1,
    )


@CLASSIFIERS.register("xgboost")
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
    """XGBoost; stops when the validation log loss has not decreased for ``patience`` trees."""
    columns = set(categorical_columns(inputs))
    width = math.prod(inputs.shape) + len(inputs.categories)
    return optional_import("xgboost", "classifier 'xgboost'").XGBClassifier(
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


def fit_classifier(name: str, options: Mapping[str, Any], data: TaskData, seed: int) -> ProbaTeacher:
    """Fit a classifier on the training set of a task.

    LightGBM and XGBoost choose their number of trees on the validation set. The others use the training set only.

    Args:
        name: in :data:`~tgeokd.teachers.registry.CLASSIFIERS`.
        options: of the classifier.
        data: tables, or arrays, which are flattened.
        seed: of the classifier.

    Raises:
        InputError: also for data that is not held in arrays or is augmented, and options that the library rejects.
    """
    what = f"classifier {name!r}"
    fixed = {"inputs": data.inputs, "num_classes": data.num_classes, "seed": seed}
    classifier = call_validated(what, CLASSIFIERS[name], options, **fixed)
    x, y = _columns_of(data.train, "training", what)
    classes, codes = np.unique(y, return_inverse=True)  # XGBoost and LightGBM require labels 0 to C - 1 without gaps
    arguments = _validation_arguments(name, data, classes, what) if name in ("lightgbm", "xgboost") else {}
    rejections = (optional_import(name, what).basic.LightGBMError,) if name == "lightgbm" else ()
    try:
        classifier.fit(x, codes, **arguments)
    except (ValueError, *rejections) as error:
        raise InputError(f"{what} cannot be fitted: {first_line(error)}") from error
    return ProbaTeacher(
        classifier, num_classes=data.num_classes, classes=classes.tolist(), class_names=data.class_names
    )


def _validation_arguments(name: str, data: TaskData, classes: NDArray[np.int64], what: str) -> dict[str, Any]:
    """Arguments of ``fit`` for early stopping on the validation set, with labels as positions in ``classes``."""
    x, y = _columns_of(data.held_out, "validation", what)
    known = np.isin(y, classes)  # neither library can score a class without trees
    if not known.any():
        raise InputError(f"{what} stops early on validation samples, but none is of a class in the training set")
    x, codes = x[known], np.searchsorted(classes, y[known])
    if name == "lightgbm":
        return {"eval_X": x, "eval_y": codes, "categorical_feature": categorical_columns(data.inputs)}
    return {"eval_set": [(x, codes)], "verbose": False}


def _columns_of(dataset: Dataset[Any], split: str, what: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The samples of a data set as columns, and their labels."""
    if not isinstance(dataset, ArrayDataset):
        raise InputError(f"{what} needs the {split} samples in memory as arrays, not as {type(dataset).__name__}")
    if dataset.transform is not None:
        raise InputError(f"{what} needs tables or arrays without a transform, but the {split} samples have one")
    inputs = dataset.inputs if isinstance(dataset.inputs, tuple) else (dataset.inputs,)
    return as_columns(*inputs), dataset.target.numpy()
