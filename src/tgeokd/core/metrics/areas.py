"""Areas under ROC curves of many samples: exact up to :data:`EXACT` scores, from histograms beyond.

A histogram takes scores of one bin as tied, and ties count half. So the area is off by at most half the share of the pairs of
a positive and a negative sample that fall into one bin; typically by far less, as errors of both signs cancel.
"""

import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

EXACT = 50_000_000  # scores that are kept, in float64 (400 MB)
BINS = 2**16  # of a histogram at most
REACH = 8.0  # bins are of equal width in asinh(score), from -REACH to REACH: scores up to 1490 are told apart


class RocAreas:
    """The areas of k scores, each of which ranks the samples of its own class above all others.

    Args:
        name: of the metric, for the message where the areas are not exact.
        columns: k.
        shift: added to the scores in histograms, whose bins are narrowest at 0.
    """

    def __init__(self, name: str, columns: int, shift: float = 0.0) -> None:
        self._name, self._columns, self._shift, self._samples = name, columns, shift, 0
        self._scores: list[Tensor] = []
        self._own: list[Tensor] = []
        self._counts: Tensor | None = None  # of all samples and of the positive ones, int64, shape (2, k + 1, bins)

    @property
    def bins(self) -> int:
        """Of the histogram of each score."""
        return max(min(BINS, EXACT // (2 * self._columns)), 2)

    def update(self, scores: Tensor, own: Tensor) -> None:
        """Add samples: scores, float64, shape (n, k), and the column in which each is positive, -1 for none, shape (n,)."""
        self._samples += len(own)
        if self._counts is not None:
            self._count(self._counts, scores, own)
            return
        self._scores.append(scores)
        self._own.append(own)
        if self._samples * self._columns > EXACT:
            counts = torch.zeros(2, self._columns + 1, self.bins, dtype=torch.int64, device=scores.device)
            for held in zip(self._scores, self._own, strict=True):
                self._count(counts, *held)
            self._scores, self._own, self._counts = [], [], counts

    def compute(self) -> dict[int, float]:
        """The area of each score that has positive samples, and others, by its column."""
        return self._exact() if self._counts is None else self._approximate(self._counts.cpu())

    def _exact(self) -> dict[int, float]:
        from sklearn.metrics import roc_auc_score

        self._scores, self._own = [torch.cat(self._scores)], [torch.cat(self._own)]
        scores, own = self._scores[0].cpu(), self._own[0].cpu()
        classes = [c for c in own.unique().tolist() if c >= 0]
        return {c: float(roc_auc_score((own == c).numpy(), scores[:, c].numpy())) for c in classes}

    def _count(self, counts: Tensor, scores: Tensor, own: Tensor) -> None:
        k, bins = self._columns, self.bins
        place = (scores + self._shift).asinh_().add_(REACH).mul_(bins / (2 * REACH)).nan_to_num_(0.0)
        place = place.clamp_(0, bins - 1).long()
        # samples that are positive in no column have a row of their own
        row = torch.where(own < 0, k, own)
        positive = row * bins + place.gather(1, own.clamp(min=0).unsqueeze(1)).squeeze(1)
        counts[1].view(-1).index_add_(0, positive, torch.ones_like(positive))
        place += torch.arange(k, device=place.device) * bins
        counts[0].view(-1).index_add_(0, place.flatten(), torch.ones_like(place).flatten())

    def _approximate(self, counts: Tensor) -> dict[int, float]:
        every, positive = counts[0, :-1], counts[1, :-1]
        number = positive.sum(dim=1)
        columns = ((number > 0) & (number < self._samples)).nonzero().flatten()
        areas: dict[int, float] = {}
        bound = 0.0
        for some in columns.split(256):
            p = positive[some].double()
            n = every[some].double() - p
            pairs = p.sum(dim=1) * n.sum(dim=1)
            areas |= zip(some.tolist(), ((p * (n.cumsum(dim=1) - n / 2)).sum(dim=1) / pairs).tolist(), strict=True)
            bound += float(((p * n).sum(dim=1) / (2 * pairs)).sum())
        _say(self._name, self._samples, self._columns, float(f"{bound / max(len(columns), 1):.1g}"))
        return areas


@cache
def _say(name: str, samples: int, columns: int, bound: float) -> None:
    """Once for the same set, and not in every epoch."""
    logger.warning(
        "metric %r of %d samples has %d scores, more than the %d that are kept: it is taken from histograms, and off by at "
        "most %g",
        *(name, samples, samples * columns, EXACT, bound),
    )
