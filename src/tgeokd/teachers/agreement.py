"""Comparing a teacher with the labels: chance, the largest class, another order of the classes, a shift of the rows.

The rules are about what no usable teacher does, so that weak teachers, wrong labels and rare classes are no false alarms:

- **shift**: the predictions of the rows some places further on fit the labels better, by :data:`SIGNIFICANT` standard
  deviations of the samples on which the two differ, and by 5 points or in four of five of these samples.
- **order of classes**: an order found on one half of the samples fits the other half better, likewise, and by 15 points on
  average over the classes that it moves. A teacher that takes one class for another does not gain from a swap.
- **nothing in common**: the agreement is neither above the largest class nor significantly above chance, and the samples are
  enough to tell: with near certainty it is below 15 % of the way from chance to the best that a teacher that predicts each
  class this often could reach. A teacher that predicts the largest class nearly everywhere (over 90 % of the samples) says too
  little by its most probable classes to be judged in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SIGNIFICANT = 4.75  # standard deviations; by chance one time in a million
SHIFTS = 10  # rows, in both directions
SHOWN = 5  # classes named in a message
MOST_CLASSES = 2000  # of which an order is searched; the time grows with the third power
DEPARTURES = 100, 0.1  # samples, and their share, that the teacher must predict to be of another class than the largest
USELESS = 0.15  # of the way from chance to the best that is possible


@dataclass(frozen=True)
class Agreement:
    """The agreement of a teacher's most probable classes with the labels of N samples.

    Attributes:
        samples: N.
        share: of samples on which they agree.
        largest: share of the largest class among the labels.
        chance: expected share if predictions and labels had nothing in common.
        by_class: share for each class, shape (C,); NaN for a class without a sample.
        nothing_in_common: see the module.
    """

    samples: int
    share: float
    largest: float
    chance: float
    by_class: Tensor
    nothing_in_common: bool


@dataclass(frozen=True)
class Order:
    """Another order of the teacher's classes that fits the labels far better.

    Attributes:
        classes: the teacher's class for each label, shape (C,).
        share: of samples on which they agree in this order.
    """

    classes: Tensor
    share: float

    def __str__(self) -> str:
        moved = (self.classes != torch.arange(len(self.classes))).nonzero().flatten().tolist()
        pairs = ", ".join(
            f"class {int(self.classes[label])} of the teacher is label {label}" for label in moved[:SHOWN]
        )
        more = f", ... ({len(moved)} classes)" if len(moved) > SHOWN else ""
        return f"with its classes in another order it agrees with {percent(self.share)}: {pairs}{more}"


@dataclass(frozen=True)
class Shift:
    """A shift of the rows of predictions that fits the labels far better.

    Attributes:
        rows: the prediction for a sample stands this many rows further on.
        share: of samples on which they agree after the shift.
        before: share for the same samples as they are.
    """

    rows: int
    share: float
    before: float

    def __str__(self) -> str:
        rows = f"{abs(self.rows)} row{'s' if abs(self.rows) > 1 else ''}"
        place = f"row i {'+' if self.rows > 0 else '-'} {abs(self.rows)}"
        share, before = percent(self.share), percent(self.before)
        return f"shifted by {rows} (the prediction of {place} for sample i) it agrees with {share} instead of {before}"


def measure(predicted: Tensor, target: Tensor, num_classes: int) -> Agreement:
    """The agreement of most probable classes with labels, both int64, shape (N,), N >= 1."""
    n = len(target)
    labels = target.bincount(minlength=num_classes).double()
    guesses = predicted.bincount(minlength=num_classes).double()
    hits = target[predicted == target].bincount(minlength=num_classes).double()
    pairs = labels * guesses
    expected = float(pairs.sum()) / n
    # the variance of the number of agreements when one of the two is put into random order
    variance = float((pairs * (n - labels) * (n - guesses)).sum() + pairs.sum().square() - pairs.square().sum())
    deviation = sqrt(max(variance, 0.0) / (n * n * max(n - 1, 1)))
    agreed, best = float(hits.sum()), float(torch.minimum(labels, guesses).sum())
    departures = n - float(guesses[int(labels.argmax())])
    gain, margin = agreed - expected, 2.5 * deviation
    useless = gain <= margin + 1e-9 * n and gain + margin <= USELESS * (best - expected) + 1e-9 * n
    judged = departures >= max(DEPARTURES[0], DEPARTURES[1] * n)
    return Agreement(
        samples=n,
        share=agreed / n,
        largest=float(labels.max()) / n,
        chance=expected / n,
        by_class=hits / labels.where(labels > 0, torch.nan),
        nothing_in_common=judged and useless and agreed <= float(labels.max()),
    )


def better_order(predicted: Tensor, target: Tensor, num_classes: int) -> Order | None:
    """An order of the classes that fits the labels far better; None where there is none, and above :data:`MOST_CLASSES`.

    Args:
        predicted: most probable classes, int64, shape (N,).
        target: labels, int64, shape (N,).
        num_classes: C.
    """
    n = len(target)
    if num_classes > MOST_CLASSES or n < 2:
        return None
    half = torch.randperm(n, generator=torch.Generator().manual_seed(0)) < n // 2
    gained = lost = 0
    gains: list[float] = []
    for known, judged in ((half, ~half), (~half, half)):
        order = _best_order(predicted[known], target[known], num_classes)
        moved = judged & (order[target] != target)
        found, label = predicted[moved], target[moved]
        won, gone = found == order[label], found == label
        gained, lost = gained + int(won.sum()), lost + int(gone.sum())
        counts = label.bincount(minlength=num_classes)
        gain = label.bincount(won.double() - gone.double(), minlength=num_classes) / counts.clamp(min=1)
        gains += gain[counts > 0].tolist()
    if not gains or not _significant(gained, lost) or sum(gains) / len(gains) < 0.15:
        return None
    order = _best_order(predicted, target, num_classes)
    return Order(order, float((predicted == order[target]).double().mean()))


def better_shift(rows: Tensor, predicted: Tensor, wanted: Tensor, target: Tensor) -> Shift | None:
    """A shift of the predictions, of up to :data:`SHIFTS` rows, that fits the labels far better; None where there is none.

    Args:
        rows: the numbers of the rows of predictions, distinct and ascending, int64, shape (M,), M >= 1.
        predicted: most probable class of each row, shape (M,).
        wanted: the row of each label, shape (N,).
        target: labels, shape (N,).
    """
    own, present = _at(rows, predicted, wanted)
    wanted, target, own = wanted[present], target[present], own[present]
    best: Shift | None = None
    for shift in sorted((k for k in range(-SHIFTS, SHIFTS + 1) if k), key=abs):
        other, present = _at(rows, predicted, wanted + shift)
        before, after = (own == target)[present], (other == target)[present]
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        if not _significant(gained, lost) or (gained - lost < 0.05 * len(after) and gained < 4 * lost):
            continue
        share = float(after.double().mean())
        if best is None or share > best.share:
            best = Shift(shift, share, float(before.double().mean()))
    return best


def percent(share: float) -> str:
    """A share as text: ``46 %``."""
    return f"{100 * share:.0f} %" if 0.1 <= share <= 0.99 or share in (0, 1) else f"{100 * share:.1f} %"


def lowest_classes(agreement: Agreement, names: Sequence[str] = ()) -> str:
    """The classes with the lowest agreement, as text."""
    shares = agreement.by_class.nan_to_num(nan=2.0)
    lowest = [int(c) for c in shares.argsort(stable=True)[:SHOWN] if shares[c] <= 1]
    return ", ".join(f"{names[c] if len(names) == len(shares) else c} {percent(float(shares[c]))}" for c in lowest)


def _significant(gained: int, lost: int) -> bool:
    """Whether one of two ways is right on so many more of the samples on which only one is that it is no chance."""
    return gained - lost > SIGNIFICANT * sqrt(gained + lost)


def _best_order(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The teacher's class for each label with the most agreements; of equals, the one that moves the fewest classes."""
    counts = (target * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    counts = counts * (num_classes + 1) + torch.eye(num_classes, dtype=torch.int64)
    return torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])


def _at(rows: Tensor, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The values of rows, and a mask of those that exist."""
    places = torch.searchsorted(rows, wanted).clamp_(max=len(rows) - 1)
    return values[places], rows[places] == wanted
