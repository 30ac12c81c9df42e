"""Outliers made from normal samples: noise on the inputs, wrong labels; and how well a number tells them apart."""

from __future__ import annotations

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

__all__ = ["below", "feature_sd", "human_counts", "noisy_inputs", "relabellers", "wrong_labels"]


def feature_sd(batches: Sequence[Any]) -> Tensor:
    """Standard deviation (n) of the inputs as the model sees them: of every feature, or of every channel of images.

    Args:
        batches: of training samples. Of a table's inputs the numeric columns are taken.

    Returns:
        Shape (F,) for vectors and tables, (channels, 1, 1) for images.
    """
    numbers = [batch[0][0] if isinstance(batch[0], tuple | list) else batch[0] for batch in batches]
    inputs = torch.cat(numbers).double()
    over = (0, *range(2, inputs.ndim))
    sd = inputs.std(dim=over, correction=0, keepdim=True)[0]
    return sd.to(numbers[0].dtype)


def noisy_inputs(batches: Sequence[Any], sd: Tensor, seed: int) -> list[Any]:
    """The batches with independent Gaussian noise of standard deviation ``sd`` added to their numbers; labels stay.

    Categories of a table stay as they are: there is no Gaussian noise on a code.
    """
    generator = torch.Generator().manual_seed(seed)

    def added(numbers: Tensor) -> Tensor:
        return numbers + sd * torch.randn(numbers.shape, generator=generator, dtype=numbers.dtype)

    changed = []
    for inputs, *rest in batches:
        table = isinstance(inputs, tuple | list)
        changed.append(((added(inputs[0]), *inputs[1:]) if table else added(inputs), *rest))
    return changed


def wrong_labels(
    batches: Sequence[Any], relabel: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[list[Any], Tensor]:
    """The batches with new labels, and which labels are wrong now, shape (N,), bool.

    Args:
        batches: of samples with right labels.
        relabel: from labels (N,) to new ones and to which of them are wrong.
    """
    noisy, wrong = relabel(torch.cat([batch[1] for batch in batches]))
    parts = noisy.split([len(batch[1]) for batch in batches])
    return [(inputs, part, *rest) for (inputs, _, *rest), part in zip(batches, parts, strict=True)], wrong


def relabellers(config: RunConfig, data: TaskData) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """The kinds of wrong labels by name: at random for any task, as people confuse the classes where that is known."""
    kinds = {"symmetric": lambda target: symmetric_noise(target, 1.0, data.num_classes, config.seed)}
    counts = human_counts(config, data)
    if counts is not None:
        kinds["human"] = lambda target: confusion_noise(target, counts, config.seed)
    return kinds


def human_counts(config: RunConfig, data: TaskData) -> Tensor | None:
    """How people confuse the classes of the task, shape (C, C); None where that is not known."""
    confusion = getattr(TASKS[config.task], "confusion", None)
    if confusion is None or config.data_dir is None:
        return None
    counts: Tensor | None = confusion(config.data, Path(config.data_dir), data.num_classes)
    return counts


def below(outlier: Tensor, normal: Tensor) -> float:
    """Area under the ROC curve of "a low value is an outlier": the chance that an outlier's is lower than a normal sample's.

    Equal values count half. 0.5 tells nothing apart; below 0.5 the outliers' values are the higher ones.

    Args:
        outlier: values of outliers, shape (M,), M >= 1.
        normal: of normal samples, shape (N,), N >= 1.
    """
    values = torch.cat([outlier, normal]).double().numpy()
    return float(roc_auc_score(np.repeat([1, 0], [len(outlier), len(normal)]), -values))
