r"""A model of wrong labels in closed form: which class a sample has, given the teacher's prediction and the label.

The teacher is calibrated on validation samples, whose labels are taken to be correct: ``p(c | x) = softmax(s z^T + b)``. The
rates of confusion follow from its mean predictions on the training samples of each label,

    P(label k | class c)  ~  sum_i 1[y_i = k] p(c | x_i) / sum_i p(c | x_i),

and Bayes' rule gives the class of a sample: ``p(c | x, y) ~ p(c | x) P(y | c)``. It needs no estimate of how many labels are
wrong, and no iteration: the rates are smoothed by the uncertainty of the teacher, so they err on the side of doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.core.geometry.class_means import DENSE_CLASSES
from tgeokd.core.softmax import log_softmax, softmax
from tgeokd.utils.errors import InputError

SHRINKAGE = 1e-3  # of the class biases, so that a class with few validation samples keeps its own
CALIBRATED_ON = 20_000_000  # entries of the validation logits at most; of more samples some are drawn
SMALLEST = 1e-9  # rate; no label is impossible
CERTAIN = 1e-4  # probability left to the other classes of a sample whose label is known to be correct


@dataclass(frozen=True)
class LabelNoise:
    """The model, fitted by :class:`LabelNoiseFit`.

    Attributes:
        scale: ``s``, shape (); the reciprocal of the usual calibration temperature.
        bias: ``b``, shape (C,).
        log_rates: ``log P(label | class)``: shape (C, C), rows by label; or, for very many classes, shape (C,): of the labels
            that are the class itself, where the others are taken to be equally likely.
    """

    scale: Tensor
    bias: Tensor
    log_rates: Tensor

    def calibrated(self, teacher_logits: Tensor) -> Tensor:
        """``log p(c | x)``, shape (N, C)."""
        return log_softmax(torch.addcmul(self.bias, teacher_logits, self.scale))

    def posterior(self, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """``log p(c | x, y)``, shape (N, C), from logits (N, C) and labels (N,)."""
        scores = torch.addcmul(self.bias, teacher_logits, self.scale)
        if self.log_rates.ndim == 2:
            return log_softmax(scores + self.log_rates.index_select(0, target))
        same = self.log_rates
        other = torch.log((1 - same.exp()).clamp_min(SMALLEST) / (len(same) - 1))
        own = (same - other).index_select(0, target).unsqueeze(-1)
        return (scores + other).scatter_add(-1, target.unsqueeze(-1), own).log_softmax(dim=-1)

    def to(self, device: torch.device | None) -> LabelNoise:
        """The same model on a device."""
        return LabelNoise(self.scale.to(device), self.bias.to(device), self.log_rates.to(device))


class CalibrationSample:
    """All validation samples, or as many as the memory allows: a uniform random choice in one pass.

    Each sample draws a number, and those with the smallest are kept; so the choices of several processes can be joined.

    Args:
        num_classes: C; at most ``CALIBRATED_ON / C`` samples are kept.
        rank: index of the process, so that each draws other numbers.
    """

    def __init__(self, num_classes: int, rank: int = 0) -> None:
        self.most = max(CALIBRATED_ON // num_classes, 1)
        self._random = np.random.default_rng([0, rank])
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []  # drawn numbers, logits, labels

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits (N, C), labels (N,)."""
        drawn = torch.from_numpy(self._random.random(len(target))).to(logits.device)
        self._kept.append((drawn, logits.detach(), target))
        if sum(len(each) for each, *_ in self._kept) > 2 * self.most:
            self._kept = [self._smallest(self._kept)]

    @classmethod
    def joined(cls, samples: Sequence[CalibrationSample]) -> tuple[Tensor, Tensor]:
        """Logits (M, C) and labels (M,) of what the samples of all processes have kept, in the order they were added."""
        return samples[0]._smallest([each for sample in samples for each in sample._kept])[1:]

    def _smallest(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        device = parts[0][0].device
        drawn, logits, target = (torch.cat([each.to(device) for each in column]) for column in zip(*parts, strict=True))
        if len(drawn) > self.most:
            rows = drawn.topk(self.most, largest=False, sorted=False).indices.sort().values
            drawn, logits, target = drawn[rows], logits[rows], target[rows]
        return drawn, logits, target


class LabelNoiseFit:
    """Fits a :class:`LabelNoise` batch by batch: :meth:`calibrate` first, then :meth:`update` with the training samples.

    Args:
        num_classes: C.

    Example:
        >>> fit = LabelNoiseFit(num_classes=10)
        >>> sample = CalibrationSample(num_classes=10)
        >>> sample.add(val_logits, val_target)                                               # doctest: +SKIP
        >>> fit.calibrate([sample])                                                          # doctest: +SKIP
        >>> for inputs, target in loader:                                                    # doctest: +SKIP
        ...     fit.update(teacher(inputs), target)
        >>> noise = fit.compute()                                                            # doctest: +SKIP
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._dense = num_classes <= DENSE_CLASSES
        self._scale, self._bias = torch.ones(()), torch.zeros(num_classes)
        self._joint = torch.zeros((num_classes, num_classes) if self._dense else (num_classes,), dtype=torch.float64)
        self._classes = torch.zeros(num_classes, dtype=torch.float64)

    def calibrate(self, samples: Sequence[CalibrationSample]) -> None:
        """Fit scale and biases to samples whose labels are correct, one :class:`CalibrationSample` of each process."""
        self._scale, self._bias = calibration(*CalibrationSample.joined(samples))

    def update(self, teacher_logits: Tensor, target: Tensor) -> None:
        """Add training samples: logits (N, C), labels (N,)."""
        device = teacher_logits.device
        scale, bias = self._scale.to(device), self._bias.to(device)
        probs = softmax(torch.addcmul(bias, teacher_logits.float(), scale)).double()
        self._joint, self._classes = self._joint.to(device), self._classes.to(device)
        if self._dense:
            self._joint.index_add_(0, target, probs)
        else:
            self._joint.index_add_(0, target, probs.gather(-1, target.unsqueeze(-1)).squeeze(-1))
        self._classes += probs.sum(dim=0)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Sum over processes, each of which has seen other samples."""
        self._joint, self._classes = all_reduce(self._joint), all_reduce(self._classes)

    def compute(self) -> LabelNoise:
        """The model."""
        rates = (self._joint / self._classes.clamp_min(SMALLEST)).clamp(SMALLEST, 1 - SMALLEST)
        return LabelNoise(self._scale, self._bias, rates.log().float())


def calibration(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and class biases that minimise the cross-entropy of ``s z + b`` with the labels, the biases shrunk to 0.

    Args:
        logits: shape (M, C).
        target: class indices, shape (M,).

    Returns:
        ``s`` > 0, shape (), and ``b``, shape (C,), float32.

    Raises:
        InputError: for logits that are not finite.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2 (temperature with bias correction).
    """
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the teacher's logits are NaN or infinite on the validation set")
    z = logits.detach().double()
    log_scale = torch.zeros((), dtype=z.dtype, device=z.device, requires_grad=True)
    bias = torch.zeros(z.shape[-1], dtype=z.dtype, device=z.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(z * log_scale.exp() + bias, target) + SHRINKAGE * (
            bias.square().sum() + log_scale.square()
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return log_scale.detach().exp().float(), bias.detach().float()


def known_labels(log_probs: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Class probabilities (N, C), in logs, with samples whose label is known to be correct replaced by (almost) that label.

    Args:
        log_probs: shape (N, C).
        target: class indices, shape (N,).
        known: which labels are known to be correct, bool, shape (N,).
    """
    classes = log_probs.shape[-1]
    certain = torch.full_like(log_probs, CERTAIN / max(classes - 1, 1)).scatter_(-1, target.unsqueeze(-1), 1 - CERTAIN)
    return torch.where(known.unsqueeze(-1), certain.log(), log_probs)
