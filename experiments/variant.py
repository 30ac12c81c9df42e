"""The method with every cause of failure as a switch: for the study alone; what earned its place is an option of TGeoKD."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.bilevel import last_layer
from tgeokd.losses import gt_slope, kd_slope
from tgeokd.methods import METHODS, Method, SampleLoss, Signals, TrainingStep
from tgeokd.scalar_geometry import Parts, scalar_from_logits

__all__ = ["Oracle", "Variant", "Wrong"]


class Wrong:
    """Which sample ids have a wrong label; for the diagnosis (and the oracle) alone."""

    def __init__(self, ids: Tensor, wrong: Tensor) -> None:
        self.table = torch.zeros(int(ids.max()) + 1_000_000 if len(ids) else 1, dtype=torch.bool)
        self.table[ids[wrong]] = True

    def of(self, ids: Tensor) -> Tensor:
        return self.table[ids.clamp(max=len(self.table) - 1)]


class Spy(Method):
    """Records the ratios of the last epoch on right and on wrong labels."""

    wrong: Wrong | None = None

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._part = 0
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.means: dict[int, list[float]] = {}

    def before_forward(self, step: TrainingStep) -> None:
        self._ids = [b.ids for b in step.batches]
        self._part = 0

    def note(self, alpha: Tensor, signals: Signals) -> None:
        self.means.setdefault(signals.epoch, []).append(float(alpha.detach().mean()))
        if self.wrong is not None and signals.epoch == signals.epochs - 1:
            self.seen.append((alpha.detach(), self.wrong.of(self._ids[self._part])))
        self._part += 1

    def found(self) -> dict[str, Any]:
        result: dict[str, Any] = {"alpha": [round(sum(v) / len(v), 3) for _, v in sorted(self.means.items())]}
        if self.seen:
            alpha, wrong = (torch.cat(x) for x in zip(*self.seen, strict=True))
            result["spread"] = round(float(alpha.std()), 3)
            if wrong.any():
                from sklearn.metrics import roc_auc_score

                result |= {
                    "alpha_right": round(float(alpha[~wrong].mean()), 3),
                    "alpha_wrong": round(float(alpha[wrong].mean()), 3),
                    "auc_wrong": round(float(roc_auc_score(wrong.numpy(), alpha.numpy())), 3),
                }
        return result


class Oracle(Spy):
    """What is wrong is known: alpha is ``wrong_alpha`` there and ``right_alpha`` elsewhere."""

    name: ClassVar[str] = "oracle"

    def __init__(self, *, right: float = 0.5, bad: float = 1.0, outer: str | None = None, weigh: bool = False) -> None:
        super().__init__()
        self.right, self.bad, self.outer, self.weigh = right, bad, outer, weigh

    def alpha(self, signals: Signals) -> Tensor:
        assert self.wrong is not None
        wrong = self.wrong.of(self._ids[self._part])
        alpha = torch.where(wrong, self.bad, self.right).to(signals.student_logits.dtype)
        self.note(alpha, signals)
        return alpha


class Rule(Spy):
    """Hand-made: the teacher counts more where it doubts the label; the batch mean is kept."""

    name: ClassVar[str] = "rule"

    def __init__(self, *, mean: float = 0.5, slope: float = 1.0, outer: str | None = None) -> None:
        super().__init__()
        self.mean, self.slope, self.outer = mean, slope, outer

    def alpha(self, signals: Signals) -> Tensor:
        doubt = -signals.teacher.log_softmax(-1).gather(-1, signals.target[:, None]).squeeze(-1)
        alpha = balanced(self.slope * doubt, self.mean).detach()
        self.note(alpha, signals)
        return alpha


class Variant(Spy):
    name: ClassVar[str] = "variant"
    needs_class_means = True
    looks_ahead = True
    outer_batch_most = 128
    outer_needs_teacher = True

    def __init__(
        self,
        *,
        outer: str = "holdout",
        outer_batch_size: int | None = None,
        every: int = 8,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        hidden: tuple[int, ...] = (32, 16),
        form: str = "sigmoid",  # sigmoid | shift | tanh | balanced
        base: tuple[float, float] = (0.5, 0.5),  # from, to
        amplitude: float = 0.5,
        start: float = 0.0,
        centre: bool = False,
        unit: bool = False,
        average: float = 0.0,
        balance: bool = False,
        delay: int = 0,
        progress: bool = False,
        inputs: str = "probs",  # probs | softened
        parts: tuple[bool, ...] = (True, True, True, True, True),
        history: bool = False,
        loss: str = "ce",  # ce | ce+kd | smoothed | margin
        keep_label: bool = False,
        standard: bool = False,
        way: str = "last_layer",
        equal: bool = False,
        level: float = 0.0,
        extra: bool = False,
        only: str = "",
        cap: float = 0.0,
        floor: float = 0.0,
        project: str = "",  # "" | own | mean: take out of v what lies along the step's gradient
    ) -> None:
        super().__init__()
        self.__dict__.update({k: v for k, v in locals().items() if k not in ("self", "__class__", "loss")})
        self.loss_name = loss
        self.hypergradient = way
        self.class_means: Tensor | None = None
        self.net: nn.Module | None = None
        self._learns = True
        self._v: dict[str, Tensor] | None = None
        self._g: dict[str, Tensor] | None = None
        self._queue: deque[Any] = deque()
        self._gap = torch.zeros(0)
        self._past: dict[int, tuple[float, float]] = {}
        self._sum = self._square = None

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        self.class_means = class_means
        self.num_classes = num_classes
        width = self._features_count()
        sizes = (width, *self.hidden, 1)
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.LeakyReLU()]
        layers.pop()
        nn.init.zeros_(layers[-1].weight)
        nn.init.constant_(layers[-1].bias, self.start)
        self.net = nn.Sequential(*layers)
        self.global_logit = nn.Parameter(torch.zeros(()))
        self.optim = torch.optim.Adam(self.net.parameters(), self.lr, weight_decay=self.weight_decay)
        self.table = torch.zeros(2_000_000, 2) if self.history else None
        self.norm_n, self.norm_mean, self.norm_sq = 0, torch.zeros(width), torch.ones(width)

    def _features_count(self) -> int:
        from tgeokd.scalar_geometry import num_scalar_features

        return num_scalar_features(Parts(*self.parts)) + self.progress + 2 * self.history + 6 * self.extra

    def before_forward(self, step: TrainingStep) -> None:
        super().before_forward(step)
        self._learns = self.records(step.index)

    def records(self, step_index: int) -> bool:
        return step_index % self.every == 0

    def _features(self, s: Signals) -> Tensor:
        student, teacher = s.student_logits.detach(), s.teacher
        if self.inputs == "softened":
            student, teacher = student / s.temperature, teacher / s.temperature
        f = scalar_from_logits(student, teacher, s.target, self.class_means, Parts(*self.parts))
        cols = [f]
        if self.progress:
            cols.append(f.new_full((len(f), 1), s.epoch / max(s.epochs - 1, 1)))
        if self.history:
            ids = self._ids[self._part]
            right = student.softmax(-1).gather(-1, s.target[:, None]).squeeze(-1)
            mean, count = self.table[ids, 0], self.table[ids, 1]
            new = torch.where(count > 0, 0.7 * mean + 0.3 * right, right)
            self.table[ids, 0], self.table[ids, 1] = new, count + 1
            cols += [new[:, None], (right - new)[:, None]]
        if self.extra:
            ls, lt = student.log_softmax(-1), teacher.log_softmax(-1)
            y = s.target[:, None]
            cols += [
                -ls.gather(-1, y), -lt.gather(-1, y), (-ls.gather(-1, y) + lt.gather(-1, y)),
                (student.argmax(-1, keepdim=True) == y).float(), (teacher.argmax(-1, keepdim=True) == y).float(),
                (student.argmax(-1) == teacher.argmax(-1)).float()[:, None],
            ]
        f = torch.cat(cols, -1) if len(cols) > 1 else f
        if self.standard:
            if self._learns:
                m = 0.98 if self.norm_n else 0.0
                self.norm_mean = m * self.norm_mean + (1 - m) * f.mean(0)
                self.norm_sq = m * self.norm_sq + (1 - m) * f.square().mean(0)
                self.norm_n += 1
            f = (f - self.norm_mean) / (self.norm_sq - self.norm_mean.square()).clamp_min(1e-6).sqrt()
        return f

    def base_now(self, s: Signals) -> float:
        a, b = self.base
        return a + (b - a) * s.epoch / max(s.epochs - 1, 1)

    def alpha(self, s: Signals) -> Tensor:
        f = self._features(s)
        self._last = (f, self.base_now(s))
        with torch.set_grad_enabled(self._learns):
            alpha = self._ratios(f, self.base_now(s))
        self.note(alpha, s)
        return alpha

    def _ratios(self, f: Tensor, base: float) -> Tensor:
        raw = self.net(f).squeeze(-1)
        if self.cap:
            raw = self.cap * (raw / self.cap).tanh()
        if self.form == "sigmoid":
            return self.floor + (1 - self.floor) * raw.sigmoid()
        if self.form == "shift":
            base = min(max(base, 0.02), 0.98)
            return (raw + math.log(base / (1 - base))).sigmoid()
        if self.form == "tanh":
            t = raw.tanh()
            return (base + self.amplitude * (t - t.mean())).clamp(0, 1)
        if self.form == "balanced":
            return balanced(raw, base)
        raise ValueError(self.form)

    def loss(self, s: Signals) -> SampleLoss:
        alpha = self.alpha(s)
        a = alpha.detach()
        if self.keep_label:
            return SampleLoss(s.gt + a / (1 - a).clamp_min(0.02) * s.kd, alpha)
        kd = s.kd
        if self.equal:
            ks = kd_slope(s.student_logits.detach(), s.teacher, s.temperature).norm(dim=-1)
            gs = gt_slope(s.student_logits.detach(), s.target).norm(dim=-1)
            self.scale = (gs.mean() / ks.mean()).clamp(0.1, 10)
            kd = kd * self.scale
        return SampleLoss(a * kd + (1 - a) * s.gt, alpha)

    def after_update(self, step: TrainingStep) -> None:
        if self.records(step.index):
            held_out = step.outer()
            alpha = torch.cat([x.alpha for x in step.losses])
            inner = step.lookahead._step
            if self.way == "last_layer" and inner.head is not None:
                gradient = self._gradient(inner, held_out, alpha)
            else:
                gradient = step.lookahead.ratio_gradient(held_out.inputs, held_out.target, alpha)
            if gradient is not None:
                alpha, gradient = gradient if isinstance(gradient, tuple) else (alpha, gradient)
                self._learn(alpha, gradient)
        self._learns = True

    def _learn(self, alpha: Tensor, gradient: Tensor) -> None:
        if self.centre:
            gradient = gradient - gradient.mean()
        if self.unit:
            gradient = gradient / gradient.norm().clamp_min(1e-12)
        if self.level:  # cost of leaving the middle on average
            gradient = gradient + self.level * gradient.norm() * (alpha.detach().mean() - 0.5) / len(alpha) ** 0.5
        self.optim.zero_grad()
        alpha.backward(gradient)
        self.optim.step()

    def _gradient(self, inner: Any, batch: Any, alpha: Tensor) -> Any:
        head = inner.head
        names = {id(p): n for n, p in inner.student.named_parameters()}
        wn, bn = names[id(head.weight)], names[id(head.bias)]
        with torch.no_grad():
            with last_layer.capture(head) as captured:
                z = inner.outer_logits(batch.inputs)
            (h,) = captured
            slope = self._outer_slope(z, batch, inner.temperature)
            if head.out_features == 1:
                slope = slope[:, 1:]
            if self.balance:
                counts = batch.target.bincount(minlength=z.shape[-1]).clamp_min(1)
                w = 1.0 / counts[batch.target]
                slope = slope * (w / w.sum())[:, None]
            else:
                slope = slope / len(z)
            v = {wn: slope.T @ h, bn: slope.sum(0)}
            if self.average:
                if self._v is None:
                    self._v, self._t = {k: torch.zeros_like(x) for k, x in v.items()}, 0
                self._t += 1
                for k in v:
                    self._v[k].mul_(self.average).add_(v[k], alpha=1 - self.average)
                v = {k: x / (1 - self.average**self._t) for k, x in self._v.items()}
            if self.project:
                g = {wn: head.weight.grad.clone(), bn: head.bias.grad.clone()}
                if self.project == "mean":
                    if self._g is None:
                        self._g, self._gt = {k: torch.zeros_like(x) for k, x in g.items()}, 0
                    self._gt += 1
                    for k in g:
                        self._g[k].mul_(self.average).add_(g[k], alpha=1 - self.average)
                    g = {k: x / (1 - self.average**self._gt) for k, x in self._g.items()}
                along = sum((v[k] * g[k]).sum() for k in v) / sum((g[k] * g[k]).sum() for k in g).clamp_min(1e-20)
                v = {k: v[k] - along * g[k] for k in v}
            if self.delay:
                diffs = [self._difference(p, inner.temperature, head) for p in inner.parts]
                self._queue.append((self._last, diffs, [p.features for p in inner.parts], inner.pullback))
                if len(self._queue) <= self.delay:
                    return None
                (seen, base), diffs, features, pullback = self._queue.popleft()
                with torch.enable_grad():
                    old_alpha = self._ratios(seen, base)
                d = pullback(v)
                g = torch.cat([(x * (f @ d[wn].T + d[bn])).sum(-1) for x, f in zip(diffs, features, strict=True)])
                return old_alpha, -g / len(old_alpha)
            d = inner.pullback(v)
            g = torch.cat([
                (self._difference(p, inner.temperature, head) * (p.features @ d[wn].T + d[bn])).sum(-1) for p in inner.parts
            ])
            return -g / inner.size

    def _difference(self, part: Any, temperature: float, head: nn.Linear) -> Tensor:
        kd = kd_slope(part.student_logits, part.teacher_logits, temperature)
        gt = gt_slope(part.student_logits, part.target)
        if self.equal:
            kd = kd * self.scale
        if self.only == "gt":
            kd = torch.zeros_like(kd)
        if self.only == "unit":
            kd = kd / kd.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            gt = gt / gt.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        slope = kd - gt
        return slope[:, 1:] if head.out_features == 1 else slope

    def _outer_slope(self, z: Tensor, batch: Any, temperature: float) -> Tensor:
        if self.loss_name == "ce":
            return gt_slope(z, batch.target)
        if self.loss_name == "ce+kd":
            return 0.5 * gt_slope(z, batch.target) + 0.5 * kd_slope(z, batch.teacher_logits, temperature)
        if self.loss_name == "smoothed":
            eps, c = 0.1, z.shape[-1]
            return z.softmax(-1) - ((1 - eps) * F.one_hot(batch.target, c) + eps / c)
        if self.loss_name == "margin":  # only samples that are not yet right by a margin count
            other = z.scatter(-1, batch.target[:, None], -math.inf)
            open_ = z.gather(-1, batch.target[:, None]).squeeze(-1) - other.max(-1).values < 1.0
            hot = F.one_hot(other.argmax(-1), z.shape[-1]) - F.one_hot(batch.target, z.shape[-1])
            return open_[:, None] * hot.to(z.dtype)
        raise ValueError(self.loss_name)

    def state_dict(self) -> dict[str, Any]:
        return {}


def balanced(raw: Tensor, mean: float) -> Tensor:
    """sigmoid(raw + c) with the c that gives the batch this mean; its derivative goes through c."""
    if mean <= 0.001 or mean >= 0.999:
        return raw * 0 + mean
    with torch.no_grad():
        low, high = -30.0 - raw.max(), 30.0 - raw.min()
        for _ in range(40):
            c = 0.5 * (low + high)
            if (raw + c).sigmoid().mean() < mean:
                low = c
            else:
                high = c
    s = (raw.detach() + c).sigmoid()
    slope = s * (1 - s)
    total = slope.sum().clamp_min(1e-12)
    # same value as sigmoid(raw + c), derivative slope_i (dr_i - sum_j slope_j dr_j / total)
    moved = raw - raw.detach()
    return s + slope * (moved - (slope * moved).sum() / total)


METHODS["variant"] = Variant
METHODS["oracle"] = Oracle
