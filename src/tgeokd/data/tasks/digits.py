"""`digits`: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.tasks.registry import TASKS
from tgeokd.utils.errors import InputError

TOTAL = 1797


@TASKS.register("digits")
def digits(*, seed: int = 0, noise: float = 0.0, train: int = 600, held_out: int = 200) -> TaskData:
    """The digits in a random stratified split, pixels scaled to [0, 1], shape (64,).

    Args:
        seed: seed of the split and of the label noise.
        noise: share of the training labels replaced by a random class; validation and test labels stay clean.
        train: size of the training set.
        held_out: size of the validation set; the rest is the test set.
    """
    if min(train, held_out, TOTAL - train - held_out) < 10:
        raise InputError(f"train={train}, held_out={held_out} and the rest of {TOTAL} samples must each be at least 10")
    source = load_digits()
    x = torch.tensor(source.data / 16.0, dtype=torch.float32)
    y = torch.tensor(source.target, dtype=torch.int64)
    rest, test = train_test_split(np.arange(TOTAL), train_size=train + held_out, stratify=y, random_state=seed)
    fit, held = train_test_split(rest, train_size=train, stratify=y[rest], random_state=seed)
    noisy, corrupted = symmetric_noise(y[fit], noise, 10, seed)
    train_set = ArrayDataset(x[fit], noisy, torch.from_numpy(fit))
    held_out_set, test_set = (ArrayDataset(x[rows], y[rows], torch.from_numpy(rows)) for rows in (held, test))
    inputs, names = InputSpec("array", (64,)), tuple("0123456789")
    return TaskData(train_set, held_out_set, test_set, 10, inputs, corrupted, names)
