"""What is reported of a test set: from logits and labels to named numbers, computed in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tgeokd.core.validation import validate_labels
from tgeokd.utils.errors import InputError, check_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

__all__ = ["FALSE_ALARMS", "Metrics", "calibration_error", "detection_rate", "higher_is_better"]

FALSE_ALARMS = 0.01
"""Share of the normal samples that may be flagged when attacks are counted."""
BINS = 15
_LOWER_IS_BETTER = ("nll", "calibration")


@dataclass(frozen=True)
class Metrics:
    """The metrics of a task, all from the logits (N, C) and the labels (N,) of one set.

    ================== ==============================================================================================
    name               what
    ================== ==============================================================================================
    ``accuracy``       share of samples whose largest logit is the label's, in [0, 1]
    ``nll``            mean cross-entropy with the label in nats, also known as log loss
    ``macro_f1``       mean over the classes that occur in the labels of ``2 TP / (2 TP + FP + FN)``
    ``macro_auc``      mean over the classes that occur in the labels of the area under the ROC curve of that class
                       against the rest, scored by its softmax probability
    ``auc``            area under the ROC curve of class 1, two classes only
    ``recall``         one number a class that occurs in the labels, ``recall/<class name>`` (its index without names)
    ``detection_rate`` share of attacks found with at most 1 % false alarms, see :func:`detection_rate`; the score is
                       the summed probability of ``attack_classes``
    ``calibration``    expected calibration error, see :func:`calibration_error`: of the probability of class 1 with two
                       classes, of the largest probability (against being right) with more
    ================== ==============================================================================================

    Classes that do not occur in the labels have no recall, F1 or one-against-rest area and are left out. Where nothing is
    left to compute (an area with one class only, a detection rate without attacks or without normal samples) an InputError
    says so: a number that does not exist is never written as one.

    Attributes:
        names: which metrics, from the table above.
        primary: the one that methods are compared by; one of ``names``, not ``recall``.
        attack_classes: class indices that count as an attack; all others are normal. Needed by ``detection_rate``.
        class_names: of the C classes, for the keys of ``recall`` and for messages.
        choose_by: the one that hyper-parameters are chosen by on held-out samples; by default ``primary``. A mean over classes
            is decided by chance where a class has a handful of held-out samples.

    Raises:
        InputError: for an unknown name, a ``primary`` or ``choose_by`` that is not among the names, or ``detection_rate``
            without ``attack_classes``.
    """

    names: tuple[str, ...] = ("accuracy", "nll")
    primary: str = "accuracy"
    attack_classes: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    choose_by: str = ""

    def __post_init__(self) -> None:
        check_names("metric", self.names, _COMPUTE)
        if not self.choose_by:
            object.__setattr__(self, "choose_by", self.primary)
        single = [name for name in self.names if name != "recall"]
        check_names("primary metric", [self.primary], single)
        check_names("metric to choose by", [self.choose_by], single)
        if "detection_rate" in self.names and not self.attack_classes:
            raise InputError("metric 'detection_rate' needs attack_classes, the class indices that are attacks")

    def __call__(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """All metrics of a set, keyed by name.

        Args:
            logits: shape (N, C), finite, any device and floating dtype.
            target: class indices, shape (N,), int64.

        Raises:
            InputError: for shapes or labels that do not fit, logits that are NaN or infinite, and everything that
                :meth:`check` refuses.
        """
        if logits.ndim != 2 or len(logits) != len(target):
            raise InputError(
                f"metrics need logits of shape (N, C) for N labels, not {tuple(logits.shape)} for {len(target)} labels"
            )
        self.check(target, logits.shape[1])
        z = logits.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(z).all()):
            bad = int((~torch.isfinite(z).all(dim=1)).sum())
            raise InputError(f"metrics need finite logits; {bad} of {len(z)} samples have a NaN or infinite one")
        result: dict[str, float] = {}
        y = target.detach().cpu()
        for name in self.names:
            result |= _COMPUTE[name](self, z, y)
        return result

    def check(self, target: Tensor, num_classes: int) -> None:
        """Raise the InputError that computing the metrics on these labels would raise, without any prediction.

        Args:
            target: class indices, shape (N,), int64.
            num_classes: C.
        """
        validate_labels(target, num_classes, "set to evaluate")
        if len(target) == 0:
            raise InputError("the set to evaluate is empty")
        present = target.unique().tolist()
        if "auc" in self.names and num_classes != 2:
            raise InputError(f"metric 'auc' is for 2 classes, not {num_classes}; use 'macro_auc'")
        for name in ("auc", "macro_auc"):
            if name in self.names and len(present) < 2:
                raise InputError(f"metric {name!r} needs two classes in the labels; all are {self._name(present[0])!r}")
        if "detection_rate" in self.names:
            validate_labels(torch.tensor(self.attack_classes), num_classes, "attack_classes")
            attacks = [c for c in range(num_classes) if c in self.attack_classes]
            for kind, classes in (("attack", attacks), ("normal", [c for c in range(num_classes) if c not in attacks])):
                if not set(classes) & set(present):
                    among = ", ".join(map(self._name, classes)) or "no class"
                    raise InputError(
                        f"metric 'detection_rate' needs {kind} samples ({among}), and the labels have none"
                    )

    def _name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else str(index)


def higher_is_better(key: str) -> bool:
    """The direction of a metric, by its name or by its key in the result.

    Raises:
        InputError: for an unknown name.
    """
    name = key.partition("/")[0]
    check_names("metric", [name], _COMPUTE)
    return name not in _LOWER_IS_BETTER


def detection_rate(score: Floats, attack: Bools, false_alarms: float = FALSE_ALARMS) -> float:
    """Largest share of attacks flagged by any threshold that flags at most a given share of the normal samples.

    A threshold ``t`` flags the samples with ``score >= t``; samples of one score are flagged together. So this is the highest
    point of the empirical ROC curve at or left of ``false_alarms``, without interpolation; 0 where the highest scores belong
    to too many normal samples.

    Args:
        score: higher is more like an attack, shape (N,).
        attack: which samples are attacks, shape (N,), bool; both kinds must occur.
        false_alarms: share of normal samples that may be flagged.
    """
    from sklearn.metrics import roc_curve

    # every corner of the curve is needed: sklearn drops collinear ones, which may be the last allowed one
    fpr, tpr, _ = roc_curve(attack, score, drop_intermediate=False)
    return float(tpr[fpr <= false_alarms].max())


def calibration_error(confidence: Floats, outcome: Bools, bins: int = BINS) -> float:
    """Expected calibration error: ``sum_b n_b / N |mean confidence - share of outcomes|`` over bins of equal count.

    Samples of one confidence share a bin, so bins are of equal count (to within one) only where confidences differ, and the
    order of the samples does not matter. Equal-count bins: Nguyen and O'Connor, "Posterior calibration and exploratory
    analysis for natural language processing models", EMNLP 2015.

    Args:
        confidence: probability given to the event, shape (N,).
        outcome: whether it happened, shape (N,), bool.
        bins: number of bins.
    """
    rank = np.searchsorted(np.sort(confidence), confidence, side="left")
    index = rank * bins // len(confidence)
    gap = np.bincount(index, weights=confidence - outcome, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def _log_odds(z: Tensor, classes: list[int]) -> Floats:
    """Log odds of a set of classes against the others, shape (N,).

    They order samples as the probability does and do not saturate: in float64 a probability is 1 from a logit gap of 37 on,
    and samples that differ would tie. Rounded to 9 decimals, so that the last bits of a sum do not decide between equals.
    """
    others = [c for c in range(z.shape[1]) if c not in classes]
    return np.round((z[:, classes].logsumexp(dim=1) - z[:, others].logsumexp(dim=1)).numpy(), 9)


def _accuracy(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    return {"accuracy": float((z.argmax(dim=1) == y).double().mean())}


def _nll(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    return {"nll": float(torch.nn.functional.cross_entropy(z, y))}


def _macro_f1(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    from sklearn.metrics import f1_score

    # the classes of the labels, not those predicted as well: the mean is over the same classes for every model
    labels = y.unique().numpy()
    return {"macro_f1": float(f1_score(y.numpy(), z.argmax(dim=1).numpy(), labels=labels, average="macro"))}


def _macro_auc(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score((y == c).numpy(), _log_odds(z, [c])) for c in y.unique().tolist()]
    return {"macro_auc": float(np.mean(areas))}


def _auc(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    return {"auc": float(roc_auc_score(y.numpy(), _log_odds(z, [1])))}


def _recall(metrics: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    right = (z.argmax(dim=1) == y).double()
    return {f"recall/{metrics._name(c)}": float(right[y == c].mean()) for c in y.unique().tolist()}


def _detection_rate(metrics: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    classes = sorted(set(metrics.attack_classes))
    return {"detection_rate": detection_rate(_log_odds(z, classes), torch.isin(y, torch.tensor(classes)).numpy())}


def _calibration(_: Metrics, z: Tensor, y: Tensor) -> dict[str, float]:
    p = z.softmax(dim=1)
    confidence, outcome = (p[:, 1], y == 1) if z.shape[1] == 2 else (p.max(dim=1).values, z.argmax(dim=1) == y)
    return {"calibration": calibration_error(confidence.numpy(), outcome.numpy())}


_COMPUTE: dict[str, Callable[[Metrics, Tensor, Tensor], dict[str, float]]] = {
    "accuracy": _accuracy,
    "nll": _nll,
    "macro_f1": _macro_f1,
    "macro_auc": _macro_auc,
    "auc": _auc,
    "recall": _recall,
    "detection_rate": _detection_rate,
    "calibration": _calibration,
}
