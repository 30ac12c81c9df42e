"""A task: 569 breast tumours that come with scikit-learn, benign or malignant."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from tgeokd.core.metrics import Metrics
from tgeokd.data import InputSpec, TaskData


def tumours(*, seed: int = 0, validation: int = 100, test: int = 150) -> TaskData:
    """A random stratified split; the features are standardized with the training samples.

    Args:
        seed: seed of the split.
        validation: size of the validation set.
        test: size of the test set.
    """
    source = load_breast_cancer()
    rest, test_rows = train_test_split(np.arange(569), test_size=test, stratify=source.target, random_state=seed)
    train_rows, val_rows = train_test_split(rest, test_size=validation, stratify=source.target[rest], random_state=seed)
    x = source.data - source.data[train_rows].mean(axis=0)
    x = torch.tensor(x / x[train_rows].std(axis=0), dtype=torch.float32)
    y = torch.tensor(source.target, dtype=torch.int64)
    train_set, val_set, test_set = (TensorDataset(x[rows], y[rows]) for rows in (train_rows, val_rows, test_rows))
    return TaskData(
        train_set,
        val_set,
        test_set,
        num_classes=2,
        inputs=InputSpec("array", (30,)),
        class_names=("malignant", "benign"),
        metrics=Metrics(("accuracy", "nll", "auc"), primary="auc"),
    )
