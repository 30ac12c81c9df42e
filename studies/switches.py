"""TGeo-KD with a switch for every suspected cause of failure, and the oracle it is measured against.

For the study of causes.py alone: what earned its place is an option of ``tgeokd.methods.TGeoKD``. The code is written anew
from the formulas and not on top of it, because most switches reach into the middle of the method. The defaults of both are
the same, so ``Variant()`` is ``TGeoKD()`` but for rounding.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tgeokd.bilevel.estimators import last_layer
from tgeokd.core.geometry.scalar import Parts, num_scalar_features, scalar_from_logits
from tgeokd.core.losses import gt_grad, kd_grad
from tgeokd.methods import Method, SampleLoss, Signals, TrainingStep

__all__ = ["Oracle", "Variant"]

Tensors = dict[str, Tensor]


class Diagnosed(Method):
    """A method that keeps what is asked of its ratios afterwards.

    Attributes:
        wrong_ids: ids of the samples known to have a wrong label; None where that is unknown. The Variant never reads it
            to learn.
    """

    wrong_ids: Tensor | None = None

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._part = 0  # which micro-batch of the step comes next
        self._means: dict[int, list[float]] = {}
        self._last_epoch: list[tuple[Tensor, Tensor]] = []

    def before_forward(self, step: TrainingStep) -> None:
        self._ids = [batch.ids for batch in step.batches]
        self._part = 0

    def wrong(self) -> Tensor:
        """Which samples of the running micro-batch have a wrong label, shape (N,)."""
        assert self.wrong_ids is not None
        return torch.isin(self._ids[self._part], self.wrong_ids)

    def note(self, alpha: Tensor, signals: Signals) -> None:
        """Keep the ratios of a micro-batch and go on to the next."""
        self._means.setdefault(signals.epoch, []).append(float(alpha.detach().mean()))
        if self.wrong_ids is not None and signals.epoch == signals.epochs - 1:
            self._last_epoch.append((alpha.detach(), self.wrong()))
        self._part += 1

    def diagnosis(self) -> dict[str, Any]:
        """``alpha``: its mean by epoch. Of the last epoch, where wrong labels are known: the ``spread`` over the samples,
        the mean on right and on wrong labels, and the AUC of alpha as a test for wrong ones.
        """
        found: dict[str, Any] = {"alpha": [round(sum(m) / len(m), 3) for _, m in sorted(self._means.items())]}
        if self._last_epoch:
            alpha, wrong = (torch.cat(column) for column in zip(*self._last_epoch, strict=True))
            found["spread"] = round(float(alpha.std()), 3)
            if wrong.any():
                found["alpha_right"] = round(float(alpha[~wrong].mean()), 3)
                found["alpha_wrong"] = round(float(alpha[wrong].mean()), 3)
                found["auc_wrong"] = round(float(roc_auc_score(wrong.numpy(), alpha.numpy())), 3)
        return found


class Oracle(Diagnosed):
    """Knows which labels are wrong, and leaves these to the teacher: what ratios could do at best.

    Args:
        right: alpha where the label is right; 1 where it is wrong.
    """

    name: ClassVar[str] = "oracle"
    outer = "union"  # it asks for no outer batch, but trains on the same samples as the others

    def __init__(self, *, right: float) -> None:
        super().__init__()
        self.right = right

    def alpha(self, signals: Signals) -> Tensor:
        alpha = torch.where(self.wrong(), 1.0, self.right).to(signals.student_logits.dtype)
        self.note(alpha, signals)
        return alpha


class Variant(Diagnosed):
    """The method with its switches, each under the cause it belongs to.

    Args:
        average: (1, short horizon; 3, noise) decay of the moving averages of the held-out gradient and of the step's own.
        delay: (1) learn from the held-out gradient so many updates of omega later than the step it is to judge. Only with
            ``fixed_length=False``.
        progress: (1) give omega the share of training done as an input.
        fixed_length: (2, step size) take out of the outer direction what would only change the length of the step.
        centred: (2) take the mean out of ``d L_val / d alpha``, so that a step of omega leaves the batch's mean about alone.
        equal_norms: (2) scale kd so that its gradient by the logits is on average as long as that of gt.
        unit_slopes: (2) ask about kd and gt of each sample as if their gradients by the logits had length 1. The training
            loss stays as it is.
        ratio: (2) ``"sigmoid"``; ``"kept_mean"``, whose mean over the batch is ``mean``, so that omega only redistributes;
            ``"around"``, the sigmoid moved so that it starts at ``mean``.
        mean: (2) of the two latter, in the first and in the last epoch; in between it goes straight.
        balanced_outer: (3, noise) every class weighs the same in an outer batch.
        outer_batch_size: (3) samples in an outer batch.
        every: (3) steps from one update of omega to the next.
        hypergradient: (4, the approximation) ``"last_layer"``, or the exact ``"forward"``, which goes with the held-out
            cross-entropy of one step alone: no average, no fixed length, nor any other switch of the direction.
        parts: (5, the inputs) of the geometry: vertices, edges, angles, edge between student and teacher, class mean.
        softened: (5) take the geometry at the temperature of the loss.
        standardised: (5) every input to mean 0 and deviation 1, by moving averages.
        logs: (5) add log-probabilities of the label, and who is right and who agrees.
        history: (5) add the student's probability of the label: its moving average for this sample and the change.
        outer_loss: (6, the outer loss) ``"ce"``; ``"ce+kd"``, half each; ``"smoothed"`` labels, 0.1; ``"margin"``, a hinge.
        lr: (7, hyper-parameters) of omega's Adam.
        weight_decay: (7) likewise.
        start: (7) what the sigmoid is taken of before omega has learned anything.
        outer: ``"union"``: the student trains on the held-out samples too; ``"holdout"``: it does not.
    """

    name: ClassVar[str] = "variant"
    needs_class_means = True
    looks_ahead = True
    outer_batch_most = 128
    outer_needs_teacher = True

    def __init__(
        self,
        *,
        average: float = 0.9,
        delay: int = 0,
        progress: bool = False,
        fixed_length: bool = True,
        centred: bool = False,
        equal_norms: bool = False,
        unit_slopes: bool = False,
        ratio: str = "sigmoid",
        mean: tuple[float, float] = (0.5, 0.5),
        balanced_outer: bool = False,
        outer_batch_size: int | None = None,
        every: int = 4,
        hypergradient: str = "last_layer",
        parts: tuple[bool, ...] = (True, True, True, True, True),
        softened: bool = False,
        standardised: bool = False,
        logs: bool = False,
        history: bool = False,
        outer_loss: str = "ce",
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        start: float = 0.0,
        outer: str = "union",
    ) -> None:
        super().__init__()
        if delay and fixed_length:
            raise ValueError("delay goes with fixed_length=False alone")
        if hypergradient == "forward" and (average or fixed_length):
            raise ValueError("hypergradient='forward' goes with average=0 and fixed_length=False alone")
        self.delay, self.fixed_length, self.centred = delay, fixed_length, centred
        self.equal_norms, self.unit_slopes, self.ratio, self.mean = equal_norms, unit_slopes, ratio, mean
        self.balanced_outer, self.outer_loss, self.every = balanced_outer, outer_loss, every
        self.lr, self.weight_decay, self.start = lr, weight_decay, start
        self.outer, self.outer_batch_size, self.hypergradient = outer, outer_batch_size, hypergradient
        self.inputs = _Inputs(Parts(*parts), progress, softened, standardised, logs, _History() if history else None)
        self._outer_gradient, self._step_gradient = _Average(average), _Average(average)
        self._queue: deque[_Asked] = deque()  # steps whose held-out gradient is still to come
        self._kd_scale = torch.ones(())
        self._learns = True  # whether the running step will ask for a gradient

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        self.class_means = class_means
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((self.inputs.count, 32, 16, 1)):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU()]
        self.network = nn.Sequential(*layers[:-1])
        nn.init.zeros_(self.network[-1].weight)
        nn.init.constant_(self.network[-1].bias, self.start)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.lr, weight_decay=self.weight_decay)

    def records(self, step_index: int) -> bool:
        return step_index % self.every == 0

    def before_forward(self, step: TrainingStep) -> None:
        super().before_forward(step)
        self._learns = self.records(step.index)

    def loss(self, signals: Signals) -> SampleLoss:
        features = self.inputs(signals, self.class_means, self._ids[self._part], learns=self._learns)
        first, last = self.mean
        self._asked = features, first + (last - first) * progress_of(signals)
        with torch.set_grad_enabled(self._learns):
            alpha = self._ratios(*self._asked)
        self.note(alpha, signals)
        kd = signals.kd
        if self.equal_norms:
            student = signals.student_logits.detach()
            of_kd = kd_grad(student, signals.teacher, signals.temperature).norm(dim=-1).mean()
            self._kd_scale = (gt_grad(student, signals.target).norm(dim=-1).mean() / of_kd).clamp(0.1, 10)
            kd = kd * self._kd_scale
        fixed = alpha.detach()
        return SampleLoss(fixed * kd + (1 - fixed) * signals.gt, alpha)

    def _ratios(self, features: Tensor, mean: float) -> Tensor:
        raw: Tensor = self.network(features).squeeze(-1)
        if self.ratio == "kept_mean":
            return with_mean(raw, mean)
        if self.ratio == "around":
            return (raw + math.log(mean / (1 - mean))).sigmoid()
        return raw.sigmoid()

    def after_update(self, step: TrainingStep) -> None:
        if not self.records(step.index):
            return
        held_out = step.outer()
        alpha = torch.cat([loss.alpha for loss in step.losses])
        # The lookahead has no public view of its record: this study is the only one that wants other formulas on it.
        record = step.lookahead._step
        if self.hypergradient == "last_layer" and record.head is not None:
            found = self._gradient(record, held_out, alpha)
            if found is None:
                return
            alpha, gradient = found
        else:
            gradient = step.lookahead.ratio_gradient(held_out.inputs, held_out.target, alpha)
        if self.centred:
            gradient = gradient - gradient.mean()
        self.optimizer.zero_grad()
        alpha.backward(gradient)
        self.optimizer.step()

    @torch.no_grad()
    def _gradient(self, record: Any, held_out: Any, alpha: Tensor) -> tuple[Tensor, Tensor] | None:
        """Ratios and the held-out loss's derivative by them, by the classifier head alone; None while all are delayed."""
        head = record.head
        names = {id(parameter): name for name, parameter in record.student.named_parameters()}
        weight, bias = names[id(head.weight)], names[id(head.bias)]
        with last_layer.capture(head) as captured:
            logits = record.outer_logits(held_out.inputs)
        (features,) = captured
        slope = of_head(outer_slope(self.outer_loss, logits, held_out, record.temperature), head)
        if self.balanced_outer:
            share = 1.0 / held_out.target.bincount(minlength=logits.shape[-1]).clamp_min(1)[held_out.target]
            slope = slope * (share / share.sum())[:, None]
        else:
            slope = slope / len(logits)
        v = self._outer_gradient.add({weight: slope.T @ features, bias: slope.sum(0)})
        step = _Asked(
            *self._asked,
            differences=[self._difference(part, record.temperature, head) for part in record.parts],
            features=[part.features for part in record.parts],
            pullback=record.pullback,
        )
        if self.delay:
            self._queue.append(step)
            if len(self._queue) <= self.delay:
                return None
            step = self._queue.popleft()
            with torch.enable_grad():
                alpha = self._ratios(step.inputs, step.mean)
        direction = step.pullback(v)
        if self.fixed_length:
            g = self._step_gradient.add({name: record.gradient[name] for name in (weight, bias)})
            product = sum((direction[name] * g[name]).sum() for name in direction)
            square = sum((g[name] * g[name]).sum() for name in direction)
            share = product / square.clamp_min(1e-20)
            direction = {name: direction[name] - share * g[name] for name in direction}
        along = [
            (difference * (features @ direction[weight].T + direction[bias])).sum(-1)
            for difference, features in zip(step.differences, step.features, strict=True)
        ]
        return alpha, -torch.cat(along) / len(alpha)

    def _difference(self, part: Any, temperature: float, head: nn.Linear) -> Tensor:
        """Derivative of ``kd_i - gt_i`` by the head's outputs."""
        kd = kd_grad(part.student_logits, part.teacher_logits, temperature)
        gt = gt_grad(part.student_logits, part.target)
        if self.equal_norms:
            kd = kd * self._kd_scale
        if self.unit_slopes:
            kd = kd / kd.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            gt = gt / gt.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return of_head(kd - gt, head)


@dataclass
class _Asked:
    """A training step as it is judged, at once or after a delay."""

    inputs: Tensor
    mean: float
    differences: list[Tensor]
    features: list[Tensor]
    pullback: Any


class _Average:
    """A moving average of tensors by name, free of the zeros it starts from (as Adam's)."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.times = 0
        self.total: Tensors = {}

    def add(self, values: Tensors) -> Tensors:
        if not self.decay:
            return values
        self.times += 1
        for name, value in values.items():
            self.total.setdefault(name, torch.zeros_like(value)).mul_(self.decay).add_(value, alpha=1 - self.decay)
        return {name: self.total[name] / (1 - self.decay**self.times) for name in values}


class _History:
    """What the student thought of every sample before: a moving average of its probability of the label, by id."""

    def __init__(self) -> None:
        self.table = torch.zeros(0)

    def columns(self, ids: Tensor, probability: Tensor) -> list[Tensor]:
        missing = int(ids.max()) + 1 - len(self.table)
        if missing > 0:
            self.table = torch.cat([self.table, torch.full((missing,), math.nan)])
        before = self.table[ids]
        mean = torch.where(before.isnan(), probability, 0.7 * before + 0.3 * probability)
        self.table[ids] = mean
        return [mean[:, None], (probability - mean)[:, None]]


class _Inputs:
    """What omega is given of a sample: the geometry, and what the switches add."""

    def __init__(
        self, parts: Parts, progress: bool, softened: bool, standardised: bool, logs: bool, history: _History | None
    ) -> None:
        self.parts, self.progress, self.softened = parts, progress, softened
        self.standardised, self.logs, self.history = standardised, logs, history
        self.count = num_scalar_features(parts) + progress + 2 * (history is not None) + 6 * logs
        self.mean, self.square, self.decay = torch.zeros(self.count), torch.ones(self.count), 0.0

    def __call__(self, signals: Signals, class_means: Tensor | None, ids: Tensor, *, learns: bool) -> Tensor:
        student, teacher = signals.student_logits.detach(), signals.teacher
        if self.softened:
            student, teacher = student / signals.temperature, teacher / signals.temperature
        label = signals.target[:, None]
        columns = [scalar_from_logits(student, teacher, signals.target, class_means, self.parts)]
        if self.progress:
            columns.append(columns[0].new_full((len(label), 1), progress_of(signals)))
        if self.history is not None:
            columns += self.history.columns(ids, student.softmax(-1).gather(-1, label).squeeze(-1))
        if self.logs:
            of_student, of_teacher = (logits.log_softmax(-1).gather(-1, label) for logits in (student, teacher))
            said, taught = student.argmax(-1, keepdim=True), teacher.argmax(-1, keepdim=True)
            columns += [-of_student, -of_teacher, -of_student + of_teacher]
            columns += [(said == label).float(), (taught == label).float(), (said == taught).float()]
        inputs = torch.cat(columns, -1) if len(columns) > 1 else columns[0]
        return self._standardise(inputs, learns=learns) if self.standardised else inputs

    def _standardise(self, inputs: Tensor, *, learns: bool) -> Tensor:
        if learns:
            self.mean = self.decay * self.mean + (1 - self.decay) * inputs.mean(0)
            self.square = self.decay * self.square + (1 - self.decay) * inputs.square().mean(0)
            self.decay = 0.98  # the first batch stands for itself
        return (inputs - self.mean) / (self.square - self.mean.square()).clamp_min(1e-6).sqrt()


def progress_of(signals: Signals) -> float:
    """Share of training done: 0 in the first epoch, 1 in the last."""
    return signals.epoch / max(signals.epochs - 1, 1)


def of_head(slope: Tensor, head: nn.Linear) -> Tensor:
    """Slopes by the head's own outputs: a one-logit head's is the second of ``(0, z)``."""
    return slope[:, 1:] if head.out_features == 1 else slope


def outer_slope(name: str, logits: Tensor, held_out: Any, temperature: float) -> Tensor:
    """Derivative of each held-out sample's outer loss by its logits, shape (N, C)."""
    target, classes = held_out.target, logits.shape[-1]
    if name == "ce":
        return gt_grad(logits, target)
    if name == "ce+kd":
        return 0.5 * gt_grad(logits, target) + 0.5 * kd_grad(logits, held_out.teacher_logits, temperature)
    if name == "smoothed":
        return logits.softmax(-1) - (0.9 * F.one_hot(target, classes) + 0.1 / classes)
    if name == "margin":  # a hinge: samples that are right by a margin of 1 count no more
        others = logits.scatter(-1, target[:, None], -math.inf)
        counts = logits.gather(-1, target[:, None]).squeeze(-1) - others.max(-1).values < 1.0
        slope = F.one_hot(others.argmax(-1), classes) - F.one_hot(target, classes)
        return counts[:, None] * slope.to(logits.dtype)
    raise ValueError(f"unknown outer loss {name!r}")


def with_mean(raw: Tensor, mean: float) -> Tensor:
    """``sigmoid(raw + c)`` with the c that gives the batch this mean; the derivative takes c's into account."""
    with torch.no_grad():
        low, high = -30.0 - raw.max(), 30.0 - raw.min()
        for _ in range(40):
            c = 0.5 * (low + high)
            low, high = (c, high) if (raw + c).sigmoid().mean() < mean else (low, c)
    value = (raw.detach() + c).sigmoid()
    slope = value * (1 - value)
    # zero in value; in derivative slope_i (dr_i - sum_j slope_j dr_j / sum_j slope_j), by implicit differentiation
    change = raw - raw.detach()
    return value + slope * (change - (slope * change).sum() / slope.sum().clamp_min(1e-12))
