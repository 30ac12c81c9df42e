"""`tgeo`: the fusion ratio of each sample from its trilateral geometry, learned by bilevel optimisation."""

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tgeokd.bilevel import Estimator, FusedTerms, LossTerms, OuterDirection, build_estimator
from tgeokd.core.geometry.class_means import DENSE_CLASSES, KEPT
from tgeokd.core.geometry.log import log_features, num_log_features
from tgeokd.core.geometry.scalar import GeometryFeatures, SparseClassMeans, scalar_from_logits
from tgeokd.core.geometry.vector import num_features, trilateral
from tgeokd.core.label_noise import CERTAIN, LabelNoise
from tgeokd.core.losses import fuse
from tgeokd.core.validation import check_at_least, check_choice, check_count
from tgeokd.methods.base import METHODS, LossInputs, Method, Outer, SampleLoss
from tgeokd.methods.corrected import CorrectedTerms, corrected_labels
from tgeokd.methods.ratio_network import RatioNetwork
from tgeokd.utils.deprecation import renamed_arguments
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)

MEAN_SQUARE_DECAY = 0.98  # of the running mean of the squared hypergradient
EXACT = ("exact", "forward", "finite_difference", "unrolled")

# Of each option what did best on validation data (docs/why-it-works.md), and what the published method may have.
SETTINGS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "encoding": ("log", ("vector",)),
    "label": ("posterior", ("given",)),
    "prior": (True, (False,)),
    "penalty": (0.1, (0.0,)),
    "outer": ("union", ("holdout",)),
    "hypergradient": ("auto", EXACT),
    "update_interval": (4, (1,)),
    "ema_decay": (0.9, (0.0,)),
    "project_out_step_length": (True, (False,)),
}


def _settings(paper: bool, **options: Any) -> dict[str, Any]:
    """The options, from :data:`SETTINGS` where they are None."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        allowed = SETTINGS[name][1]
        if paper and value not in allowed:
            raise InputError(f"paper=True is the published method, which has {name}={allowed[0]!r}, not {value!r}")
    return {name: allowed[0] if paper else best for name, (best, allowed) in SETTINGS.items()} | given


@METHODS.register("tgeo")
class TGeoKD(Method):
    """TGeo-KD: learn, for every sample, how much to trust the teacher and how much the label.

    ``alpha_i = sigmoid(f_omega(Delta_i))``, where ``Delta_i`` is the trilateral geometry of the sample
    (:func:`tgeokd.geometry.trilateral`). ``f_omega`` is trained so that the student's step lowers the validation loss:
    ``d L_val / d omega = sum_i (d L_val / d alpha_i) (d alpha_i / d omega)``.

    The defaults are not the paper's: they are what did best on development sets (docs/why-it-works.md). Training starts at
    what is known in closed form (:mod:`tgeokd.core.label_noise`): with ``q_i``, the class probabilities given the teacher and
    the label, the label term is the cross-entropy with ``q_i``, and the ratio starts at what the teacher is worth for it,

        loss_i = alpha_i kd_i + (1 - alpha_i) CE(q_i),
        alpha_i = sigmoid(log odds of (1 - (1 - base) q_i[y_i]) + f_omega(Delta_i)),

    where ``f_omega`` starts at 0 and is pulled back to it (``penalty``): at ``base`` for a label that is certainly correct, at
    1 for one that is certainly wrong. The ratio that is reported is ``1 - (1 - alpha_i) q_i[y_i]``: all that is not taken from
    the label.

    By default the student trains **on the validation samples too** (``outer="union"``), which is logged. Use
    ``outer="holdout"`` where these samples are to measure how good the student is. The labels of the validation set are taken
    to be correct. Where validation samples are recognised in the training batches (by sample ids), f_omega does not learn from
    their ratios: the validation gradient contains the samples themselves and says to trust their labels, whatever they are.

    Args:
        paper: the published method: ``encoding="vector"``, ``outer="holdout"``, the exact hypergradient in every step, and
            none of the extensions. Options that the paper leaves open (``hidden``, ``lr``, the ablations, ...) can be given.
        encoding: ``"log"`` (11 numbers, standardised, see :mod:`tgeokd.core.geometry.log`), ``"scalar"`` (at most 16 numbers,
            whatever C is) or ``"vector"`` (9C numbers, the paper's kind; not for more than
            :data:`tgeokd.core.geometry.class_means.DENSE_CLASSES` classes).
        vertices, edges, angles, student_teacher_edge: ablations of the latter two, as in
            :func:`tgeokd.geometry.trilateral`.
        inter_sample: use the class means.
        label: the label term's target: ``"posterior"``, the corrected label ``q_i``, or ``"given"``, the label itself.
        prior: start at the log odds of ``1 - (1 - base) q_i[y_i]`` rather than at 0.
        base: with ``prior``, the ratio that a sample with a certainly correct label starts at, in [0, 1): what the teacher is
            worth where no label is wrong. 0.3 is better where labels are clean and the teacher is far better than the student
            could be, and worse where it is not.
        penalty: weight of ``KL(alpha_i || ratio at the start)`` against the hypergradient, which is divided by its root mean
            square: the ratio has an optimum inside (0, 1) and cannot run away. 0 for none.
        hidden: widths of f_omega's hidden layers.
        outer: source of the outer samples. ``"union"``: the validation set, on which the student trains too. ``"holdout"``:
            a validation set that the student never trains on (the paper's protocol). ``"train"``: the training set.
        outer_batch_size: samples in an outer batch; by default the batch size of the validation loader, at most 128 (where
            the loader is a ``DataLoader`` over a map-style data set; any other is used as it is).
        hypergradient: estimator of ``d L_val / d alpha``: a name (:mod:`tgeokd.bilevel.estimators`) or an estimator.
        update_interval: update omega in every k-th step.
        inner_samples: see :class:`tgeokd.bilevel.Estimator`. By default all of a step's training samples.
        ema_decay: extension: decay of a moving average that replaces the validation gradient, per update of omega; 0 for none.
        project_out_step_length: extension: learn from the effect of a ratio on the direction of the step, not on its length.
            See :class:`tgeokd.bilevel.OuterDirection` for both.
        lr: learning rate of omega's Adam.
        weight_decay: weight decay of omega's Adam.

    Reference:
        Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"encoding": ("scalar", "vector"), "lr": (1e-3, 3e-3, 1e-2)}
    outer_batch_limit = 128

    @renamed_arguments(every="update_interval", average="ema_decay", fixed_length="project_out_step_length")
    def __init__(
        self,
        *,
        paper: bool = False,
        encoding: Literal["log", "scalar", "vector"] | None = None,
        vertices: bool = True,
        edges: bool = True,
        angles: bool | None = None,
        student_teacher_edge: bool = True,
        inter_sample: bool = True,
        label: Literal["posterior", "given"] | None = None,
        prior: bool | None = None,
        base: float = 0.0,
        penalty: float | None = None,
        hidden: tuple[int, ...] = (32, 16),
        outer: Outer | None = None,
        outer_batch_size: int | None = None,
        hypergradient: str | Estimator | None = None,
        update_interval: int | None = None,
        inner_samples: int | None = None,
        ema_decay: float | None = None,
        project_out_step_length: bool | None = None,
        lr: float = 3e-3,
        weight_decay: float = 0.0,
    ) -> None:
        chosen = _settings(
            paper,
            encoding=encoding,
            label=label,
            prior=prior,
            penalty=penalty,
            outer=outer,
            hypergradient=hypergradient,
            update_interval=update_interval,
            ema_decay=ema_decay,
            project_out_step_length=project_out_step_length,
        )
        self.set_outer(chosen["outer"], outer_batch_size)
        check_at_least(0, lr=lr, weight_decay=weight_decay, penalty=chosen["penalty"])
        if not 0 <= base < 1:
            raise InputError(f"base must lie in [0, 1), not {base}")
        check_choice("label", chosen["label"], Literal["posterior", "given"])
        check_choice("encoding", chosen["encoding"], Literal["log", "scalar", "vector"])
        check_count(1, update_interval=chosen["update_interval"])
        if not isinstance(hidden, tuple | list):
            raise InputError(f"hidden must be a list of widths, not {hidden!r}")
        for width in hidden:
            check_count(1, hidden=width)
        if not isinstance(chosen["hypergradient"], str | Estimator):
            raise InputError(f"hypergradient must be a name or an estimator, not {chosen['hypergradient']!r}")
        self.encoding = chosen["encoding"]
        scalar = self.encoding == "scalar"
        angles = scalar if angles is None else angles
        self.features = GeometryFeatures(vertices, edges, angles, student_teacher_edge, inter_sample)
        if self.encoding == "log" and self.features._replace(inter_sample=True, angles=True) != GeometryFeatures():
            raise InputError("the ablations of vertices, edges and angles need encoding='scalar' or 'vector'")
        self._num_features(2)  # refuses an impossible combination before the first step
        self.corrects_labels, self.prior, self.penalty = (
            chosen["label"] == "posterior",
            chosen["prior"],
            chosen["penalty"],
        )
        self.base = base
        self.needs_label_noise = self.corrects_labels or self.prior
        self.needs_class_means = inter_sample
        self.hidden = tuple(hidden)
        self.hypergradient, self.update_interval = chosen["hypergradient"], chosen["update_interval"]
        self.inner_samples = inner_samples
        self.ema_decay, self.project_out_step_length = chosen["ema_decay"], chosen["project_out_step_length"]
        self.lr, self.weight_decay = lr, weight_decay
        self.network: RatioNetwork | None = None
        self.optimizer: torch.optim.Adam | None = None
        self.label_noise: LabelNoise | None = None
        self._mean_square, self._updates = torch.zeros(()), 0  # of the hypergradient, a running mean
        # Features, f_omega and which labels are known, of the microbatches that are not yet learned from.
        self._pulls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.class_means: Tensor | SparseClassMeans | None = None
        self.estimator: Estimator = self._new_estimator()

    def prepare(
        self,
        num_classes: int,
        class_means: Tensor | None,
        device: torch.device | None = None,
        *,
        label_noise: LabelNoise | None = None,
    ) -> None:
        """Build f_omega. The class means may be sparse, and None without ``inter_sample``."""
        if self.needs_class_means and (class_means is None or class_means.shape != (num_classes, num_classes)):
            given = "none" if class_means is None else f"shape {tuple(class_means.shape)}"
            raise InputError(f"class_means must have shape ({num_classes}, {num_classes}), not {given}")
        if self.needs_label_noise and label_noise is None:
            raise InputError("label='posterior' and prior=True need label_noise")
        sparse = num_classes > DENSE_CLASSES if class_means is None else class_means.is_sparse
        if sparse and self.encoding == "vector":
            raise InputError(f"encoding='vector' is too large for {num_classes} classes; use encoding='scalar'")
        self.label_noise = None if label_noise is None else label_noise.to(device)
        self.class_means = None
        if self.needs_class_means and class_means is not None:
            table = class_means.detach().to(device)
            self.class_means = SparseClassMeans.of(table) if sparse else table
        if sparse:
            kept = self.class_means.kept if isinstance(self.class_means, SparseClassMeans) else KEPT
            source = "class mean" if self.needs_class_means else "teacher"
            message = "geometry of %d classes: on the label and the %d largest other entries of the %s"
            logger.info(message, num_classes, kept, source)
        network = RatioNetwork(self._num_features(num_classes), self.hidden, standardise=self.encoding == "log")
        self.network = network.to(device)
        self.optimizer = torch.optim.Adam([self.network.omega], self.lr, weight_decay=self.weight_decay)
        self._mean_square, self._updates, self._pulls = torch.zeros((), device=device), 0, []
        self.estimator = self._new_estimator()

    def _num_features(self, num_classes: int) -> int:
        if self.encoding == "log":
            return num_log_features(inter_sample=self.features.inter_sample)
        return num_features(num_classes, encoding=self.encoding, **self.features._asdict())

    def _new_estimator(self) -> Estimator:
        if isinstance(self.hypergradient, Estimator):
            return self.hypergradient
        direction = None
        if self.ema_decay or self.project_out_step_length:
            direction = OuterDirection(self.ema_decay, project_out_step_length=self.project_out_step_length)
        return build_estimator(self.hypergradient, direction=direction, inner_samples=self.inner_samples)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The fused loss of the (corrected) label."""
        weight = self._weight(inputs, learn=inputs.learn)
        if self.corrects_labels:
            loss = self.loss_terms(inputs).loss(inputs.student_logits, weight.detach())
        else:
            loss = fuse(inputs.kd, inputs.gt, weight.detach(), check=False)
        return SampleLoss(loss, self._reported(weight.detach(), inputs), weight)

    def alpha(self, inputs: LossInputs) -> Tensor:
        """What the loss of each sample does not take from its label, ``1 - (1 - alpha_i) q_i[y_i]``, shape (N,)."""
        return self._reported(self._weight(inputs, learn=False), inputs)

    def loss_terms(self, inputs: LossInputs) -> LossTerms:
        """Teacher term and label term of a batch."""
        log_q = self._log_q(inputs)
        if log_q is None or not self.corrects_labels:
            return FusedTerms(inputs.teacher, inputs.target, inputs.temperature)
        return CorrectedTerms(inputs.teacher, log_q.exp(), inputs.temperature)

    def _log_q(self, inputs: LossInputs) -> Tensor | None:
        """The corrected labels, in logs, computed once for a batch."""
        if self.label_noise is None:
            return None
        if inputs.log_q is None:
            with torch.no_grad():
                inputs.log_q = corrected_labels(self.label_noise, inputs)
        return inputs.log_q

    def _weight(self, inputs: LossInputs, *, learn: bool) -> Tensor:
        """``alpha_i``, shape (N,): detached from the student, attached to omega with ``learn``."""
        network, _ = self._built()
        with torch.no_grad():  # faster than building a graph and detaching from it
            start = self._start(inputs)
            features = self._geometry(inputs, self._evidence(inputs))
        with torch.set_grad_enabled(learn):
            learned: Tensor = network(features, learn=learn)
            weight = (learned + start.to(learned.dtype)).sigmoid()
        if learn:
            known = torch.zeros_like(learned, dtype=torch.bool) if inputs.known is None else inputs.known
            self._pulls.append((features, learned.detach(), known))
        return weight

    def _evidence(self, inputs: LossInputs) -> Tensor:
        """Log odds of a wrong label, shape (N,); 0 without a model of wrong labels."""
        label = self._label_prob(inputs)
        return torch.zeros_like(inputs.teacher[:, 0]) if label is None else -label.logit(eps=CERTAIN)

    def _start(self, inputs: LossInputs) -> Tensor:
        """Log odds of the ratio before anything is learned, shape (N,)."""
        label = self._label_prob(inputs) if self.prior else None
        if label is None:
            return torch.zeros_like(inputs.teacher[:, 0])
        return -((1 - self.base) * label).logit(eps=CERTAIN)

    def _label_prob(self, inputs: LossInputs) -> Tensor | None:
        """``q_i[y_i]``, shape (N,)."""
        log_q = self._log_q(inputs)
        if log_q is not None and inputs.label_prob is None:
            inputs.label_prob = log_q.gather(-1, inputs.target.unsqueeze(-1)).squeeze(-1).exp()
        return inputs.label_prob

    def _reported(self, weight: Tensor, inputs: LossInputs) -> Tensor:
        label = self._label_prob(inputs) if self.corrects_labels else None
        return weight if label is None else (1 - (1 - weight) * label).clamp(0, 1)

    def _built(self) -> tuple[RatioNetwork, torch.optim.Adam]:
        if self.network is None or self.optimizer is None:
            raise RuntimeError("TGeoKD needs prepare(num_classes, class_means) before its first batch")
        return self.network, self.optimizer

    def _geometry(self, inputs: LossInputs, evidence: Tensor) -> Tensor:
        student, teacher, means = inputs.student_logits.detach(), inputs.teacher.detach(), self.class_means
        if self.encoding == "log":
            return log_features(student, teacher, inputs.target, means, evidence)
        if self.encoding == "scalar":
            return scalar_from_logits(student, teacher, inputs.target, means, self.features)
        assert not isinstance(means, SparseClassMeans)
        means = student.new_empty(0) if means is None else means
        probs = (student.softmax(dim=-1), teacher.softmax(dim=-1))
        return trilateral(*probs, inputs.target, means, encoding="vector", **self.features._asdict())

    def needs_hypergradient(self, step: int) -> bool:
        """In every k-th step, k = ``update_interval``."""
        return bool(step % self.update_interval == 0)

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        """Take one step of omega down the validation loss and the penalty."""
        network, optimizer = self._built()
        pulls, self._pulls = self._pulls, []
        if pulls:
            # The last samples alone: those before belong to steps that were skipped.
            features, learned, known = (torch.cat(column)[-len(alpha) :] for column in zip(*pulls, strict=True))
            gradient = self._regularised(gradient.masked_fill(known, 0.0), learned.masked_fill(known, 0.0))
            network.observe(features)
        (network.omega.grad,) = torch.autograd.grad(alpha, network.omega, gradient.to(alpha.dtype))
        optimizer.step()

    def _regularised(self, gradient: Tensor, learned: Tensor) -> Tensor:
        """With a penalty, the hypergradient (N,) in units of its root mean square plus the penalty's derivative.

        ``KL(alpha || start)`` has the derivative ``f_omega`` with respect to alpha.
        """
        if not self.penalty:
            return gradient
        self._updates += 1
        share = max(1 - MEAN_SQUARE_DECAY, 1 / self._updates)
        self._mean_square = self._mean_square.lerp(gradient.square().mean().to(self._mean_square.dtype), share)
        scale = self._mean_square.sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
        regularised: Tensor = (gradient / scale + self.penalty * learned.to(gradient.dtype)) / len(gradient)
        return regularised

    def state_dict(self) -> dict[str, Any]:
        """Omega, its optimizer, the state of the estimator, the class means and the model of wrong labels."""
        network, optimizer = self._built()
        means, noise = self.class_means, self.label_noise
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "class_means": means._asdict() if isinstance(means, SparseClassMeans) else means,
            "label_noise": None if noise is None else dict(vars(noise)),
            "scale": {"mean_square": self._mean_square, "updates": self._updates},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after :meth:`prepare`."""
        network, optimizer = self._built()
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        means, noise = state["class_means"], state["label_noise"]
        self.class_means = SparseClassMeans(**means) if isinstance(means, dict) else means
        self.label_noise = None if noise is None else LabelNoise(**noise)
        self._mean_square, self._updates = state["scale"]["mean_square"], state["scale"]["updates"]
