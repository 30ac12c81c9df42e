"""Outliers made from normal samples (noisy inputs, wrong labels), and how well a value detects them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tgeokd.data import TASKS, TaskData
from tgeokd.data.noise import confusion_noise, symmetric_noise
from tgeokd.runs.config import RunConfig

Relabel = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From labels (N,) to new labels and the mask of the wrong ones."""


def has_numbers(data: TaskData) -> bool:
    """Whether the inputs contain numbers that noise can be added to."""
    return data.inputs.kind == "array" or data.inputs.shape[0] > 0


def feature_sd(batches: Sequence[Any]) -> Tensor:
    """Standard deviation (n) of the inputs, per feature (F,), of tables the numeric ones, or per channel (channels, 1, 1)."""
    inputs = torch.cat([batch[0][0] if isinstance(batch[0], tuple | list) else batch[0] for batch in batches])
    sd = inputs.double().std(dim=(0, *range(2, inputs.ndim)), correction=0, keepdim=True)[0]
    return sd.to(inputs.dtype)


def noisy_inputs(batches: Sequence[Any], sd: Tensor, seed: int) -> list[Any]:
    """The batches with independent Gaussian noise of standard deviation ``sd`` added to their numbers, not to categories."""
    generator = torch.Generator().manual_seed(seed)

    def added(numbers: Tensor) -> Tensor:
        return numbers + sd * torch.randn(numbers.shape, generator=generator, dtype=numbers.dtype)

    changed = []
    for inputs, *rest in batches:
        table = isinstance(inputs, tuple | list)
        changed.append(((added(inputs[0]), *inputs[1:]) if table else added(inputs), *rest))
    return changed


def wrong_labels(batches: Sequence[Any], relabel: Relabel) -> tuple[list[Any], Tensor]:
    """The batches with new labels, and a mask of the wrong ones, shape (N,), bool."""
    noisy, wrong = relabel(torch.cat([batch[1] for batch in batches]))
    labels = noisy.split([len(batch[1]) for batch in batches])
    return [(inputs, new, *rest) for (inputs, _, *rest), new in zip(batches, labels, strict=True)], wrong


def relabellers(config: RunConfig, data: TaskData) -> dict[str, Relabel]:
    """The kinds of wrong labels by name: uniform for any task, human confusions where they are known."""
    kinds: dict[str, Relabel] = {
        "symmetric": lambda target: symmetric_noise(target, 1.0, data.num_classes, config.seed)
    }
    confusion = getattr(TASKS[config.task], "confusion", None)
    if confusion is not None and config.data_dir is not None:
        counts = confusion(config.data, Path(config.data_dir), data.num_classes)
        if counts is not None:
            kinds["human"] = lambda target: confusion_noise(target, counts, config.seed)
    return kinds


def below(outlier: Tensor, normal: Tensor) -> float:
    """Area under the ROC curve for detecting outliers (M,) among normal samples (N,) by a low value.

    This is the probability that an outlier's value is lower than a normal sample's; ties count half. 0.5 is chance.
    """
    values = torch.cat([outlier, normal]).double().numpy()
    return float(roc_auc_score(np.repeat([1, 0], [len(outlier), len(normal)]), -values))
