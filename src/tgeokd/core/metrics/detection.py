"""`detection_rate`: share of attacks detected at a bounded rate of false alarms."""

import torch
from torch import Tensor

from tgeokd.core.metrics.accumulator import Accumulator
from tgeokd.core.metrics.base import METRICS, Bools, Floats, Metric, Metrics, log_odds
from tgeokd.core.validation import validate_labels
from tgeokd.utils.errors import InputError

FALSE_ALARMS = 0.01  # share of the normal samples that may be flagged


@METRICS.register("detection_rate")
class DetectionRate(Metric):
    """See :func:`detection_rate`; the score is the summed probability of ``attack_classes``."""

    title, factor, digits = "found at 1 % false alarms, %", 100, 2

    def accumulator(self, num_classes: int, settings: Metrics) -> Accumulator:
        """The share of the attacks."""
        classes = torch.tensor(settings.attack_classes)
        validate_labels(classes, num_classes, "attack_classes")
        return _DetectionRate(torch.zeros(num_classes, dtype=torch.bool).index_fill_(0, classes, True))

    def check(self, target: Tensor, num_classes: int, settings: Metrics) -> None:
        """Refuse attack classes that do not exist, and labels without attacks or without normal samples."""
        validate_labels(torch.tensor(settings.attack_classes), num_classes, "attack_classes")
        attacks = sorted(set(settings.attack_classes))
        for kind, classes in (("attack", attacks), ("normal", [c for c in range(num_classes) if c not in attacks])):
            if not set(classes) & set(target.unique().tolist()):
                among = ", ".join(map(settings.class_name, classes)) or "no class"
                raise InputError(f"metric 'detection_rate' needs {kind} samples ({among}), and the labels have none")

    def check_settings(self, settings: Metrics) -> None:
        """Refuse settings without attack classes."""
        if not settings.attack_classes:
            raise InputError("metric 'detection_rate' needs attack_classes, the class indices that are attacks")


class _DetectionRate(Accumulator):
    def __init__(self, attack: Tensor) -> None:
        self._is_attack = attack  # by class, shape (C,)
        self._scores: list[Tensor] = []
        self._attacks: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        self._is_attack = self._is_attack.to(logits.device, non_blocking=True)
        self._scores.append(log_odds(logits, self._is_attack))
        self._attacks.append(self._is_attack.index_select(0, target))

    def compute(self) -> float:
        return detection_rate(torch.cat(self._scores).cpu().numpy(), torch.cat(self._attacks).cpu().numpy())


def detection_rate(score: Floats, attack: Bools, false_alarms: float = FALSE_ALARMS) -> float:
    """Largest share of attacks flagged by any threshold that flags at most a given share of the normal samples.

    A threshold ``t`` flags the samples with ``score >= t``; samples of equal score are flagged together. So it is the highest
    point of the empirical ROC curve at or left of ``false_alarms``, without interpolation.

    Args:
        score: higher is more like an attack, shape (N,).
        attack: which samples are attacks, shape (N,), bool; both kinds must occur.
        false_alarms: share of normal samples that may be flagged.
    """
    from sklearn.metrics import roc_curve

    # by default sklearn drops collinear corners of the curve, which may include the last allowed one
    fpr, tpr, _ = roc_curve(attack, score, drop_intermediate=False)
    return float(tpr[fpr <= false_alarms].max())
