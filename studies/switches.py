"""TGeo-KD with a switch for every suspected cause of failure, and the oracle it is compared with.

Only for the study: options that proved useful are options of ``tgeokd.TGeoKD``, which computes the same as ``Variant()``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, ClassVar

import torch
from diagnosis import Diagnosed
from estimators import ESTIMATORS
from estimators import EqualNorms as EqualNormsEstimator
from inputs import Inputs, progress_of
from torch import Tensor

from tgeokd import LossInputs, Method, TGeoKD
from tgeokd.bilevel import OuterDirection
from tgeokd.core.losses import gt_grad, kd_grad
from tgeokd.methods import SampleLoss
from tgeokd.methods.ratio_network import RatioNetwork

__all__ = ["METHODS", "EqualNorms", "Oracle", "Variant", "with_mean"]

# The default at the time of the study, without what later evidence added.
STUDIED: dict[str, Any] = {"encoding": "scalar", "label": "given", "prior": False, "penalty": 0.0}
FEATURES = ("progress", "softened", "standardised", "logs", "history")


class Oracle(Diagnosed):
    """Knows which labels are wrong and takes only the teacher there: an upper bound for ratios.

    Args:
        right: alpha where the label is correct; it is 1 where the label is wrong.
    """

    name: ClassVar[str] = "oracle"
    outer = "union"  # uses no outer batch, but trains on the same samples as the others

    def __init__(self, *, right: float) -> None:
        super().__init__()
        self.right = right

    def alpha(self, inputs: LossInputs) -> Tensor:
        return torch.where(self.wrong(inputs), 1.0, self.right).to(inputs.student_logits.dtype)


class Variant(Diagnosed, TGeoKD):
    """The method with its switches.

    Args:
        estimator: name of a changed estimator (estimators.py); None for that of the package.
        delay: (cause 1) learn from the validation gradient of this many updates later; with ``estimator="delayed"``.
        ratio: (2) ``"sigmoid"``; ``"kept_mean"``, whose mean over the batch is ``mean``, so that omega only redistributes;
            ``"around"``, the sigmoid shifted so that it starts at ``mean``.
        mean: (2) of the latter two, in the first and in the last epoch; linear in between.
        start: (7) input of the sigmoid before omega has learned anything.
        ema_decay: (1, 3) as in ``TGeoKD``.
        project_out_step_length: (2) as in ``TGeoKD``.
        **options: of :class:`inputs.Inputs` (1, 5) and of ``TGeoKD``.
    """

    name: ClassVar[str] = "variant"

    def __init__(
        self,
        *,
        estimator: str | None = None,
        delay: int = 0,
        ratio: str = "sigmoid",
        mean: tuple[float, float] = (0.5, 0.5),
        start: float = 0.0,
        ema_decay: float = 0.9,
        project_out_step_length: bool = True,
        **options: Any,
    ) -> None:
        features = {key: options.pop(key) for key in FEATURES if key in options}
        if estimator is not None:
            direction = OuterDirection(ema_decay, project_out_step_length=project_out_step_length)
            further = {"delay": delay} if delay else {}
            options["hypergradient"] = ESTIMATORS[estimator](direction=direction, **further)
        own = {"ema_decay": ema_decay, "project_out_step_length": project_out_step_length}
        super().__init__(**(STUDIED | own | options))
        self.delay, self.ratio, self.mean, self.start = delay, ratio, mean, start
        self.inputs = Inputs(self.features, **features)
        self._waiting: deque[tuple[Tensor, float]] = (
            deque()
        )  # arguments of the ratios of steps that wait for a gradient

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        with torch.random.fork_rng(devices=[]):  # the network below has the initial weights that TGeoKD's would have
            super().prepare(num_classes, class_means, device)
        self.network = RatioNetwork(self.inputs.count, self.hidden).to(device)
        self.network.layers[-1][1].fill_(self.start)
        self.optimizer = torch.optim.Adam([self.network.omega], self.lr, weight_decay=self.weight_decay)

    def _weight(self, inputs: LossInputs, *, learn: bool) -> Tensor:
        with torch.no_grad():
            features = self.inputs(inputs, self.class_means)
        first, last = self.mean
        mean = first + (last - first) * progress_of(inputs)
        if self.delay and learn:
            self._waiting.append((features, mean))
        return self._ratios(features, mean, learn=learn)

    def _ratios(self, features: Tensor, mean: float, *, learn: bool) -> Tensor:
        with torch.set_grad_enabled(learn):
            log_odds: Tensor = self.network(features, learn=learn)
            if self.ratio == "kept_mean":
                return with_mean(log_odds, mean)
            if self.ratio == "around":
                log_odds = log_odds + math.log(mean / (1 - mean))
            return log_odds.sigmoid()

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        if self.delay:
            if len(self._waiting) <= self.delay:
                return
            alpha = self._ratios(*self._waiting.popleft(), learn=True)
        super().learn(alpha, gradient)


class EqualNorms(Variant):
    """Cause 2: kd is scaled so that its gradient with respect to the logits has on average the length of that of gt."""

    def __init__(self, **options: Any) -> None:
        super().__init__(estimator="equal_norms", **options)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        logits = inputs.student_logits.detach()
        of_kd = kd_grad(logits, inputs.teacher, inputs.temperature).norm(dim=-1).mean()
        scale = (gt_grad(logits, inputs.target).norm(dim=-1).mean() / of_kd).clamp(0.1, 10)
        inputs.kd = inputs.kd * scale
        assert isinstance(self.estimator, EqualNormsEstimator)
        self.estimator.kd_scale = scale
        return super().loss(inputs)


METHODS: dict[str, type[Method]] = {"variant": Variant, "equal_norms": EqualNorms, "oracle": Oracle}


def with_mean(raw: Tensor, mean: float) -> Tensor:
    """``sigmoid(raw + c)`` with the ``c`` that gives the batch this mean; the derivative includes that of ``c``."""
    with torch.no_grad():
        low, high = -30.0 - raw.max(), 30.0 - raw.min()
        for _ in range(40):
            c = 0.5 * (low + high)
            low, high = (c, high) if (raw + c).sigmoid().mean() < mean else (low, c)
    value = (raw.detach() + c).sigmoid()
    slope = value * (1 - value)
    # The last term is 0 in value; by implicit differentiation its derivative is
    # slope_i (dr_i - sum_j slope_j dr_j / sum_j slope_j).
    change = raw - raw.detach()
    return value + slope * (change - (slope * change).sum() / slope.sum().clamp_min(1e-12))
