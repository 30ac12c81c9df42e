"""`tgeo`: the fusion ratio of each sample from its trilateral geometry, learned by bilevel optimisation."""

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.bilevel import Estimator, OuterDirection, build_estimator
from tgeokd.core.geometry.class_means import DENSE_CLASSES, KEPT
from tgeokd.core.geometry.scalar import GeometryFeatures, SparseClassMeans, scalar_from_logits
from tgeokd.core.geometry.vector import Encoding, num_features, trilateral
from tgeokd.core.validation import check_at_least, check_positive
from tgeokd.methods.base import METHODS, LossInputs, Method, Outer
from tgeokd.methods.ratio_network import Adam, RatioNetwork
from tgeokd.utils.deprecation import renamed_arguments
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)

EXACT = ("exact", "forward", "finite_difference", "unrolled")

# Of each option what did best on validation data (docs/why-it-works.md), and what the published method may have.
SETTINGS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "encoding": ("scalar", ("vector",)),
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

    The defaults are not the paper's: they are what did best on validation data (docs/why-it-works.md). By default the student
    trains **on the validation samples too** (``outer="union"``), which is logged. Use ``outer="holdout"`` where these samples
    are to measure how good the student is.

    Args:
        paper: the published method: ``encoding="vector"``, ``outer="holdout"``, the exact hypergradient in every step, and
            none of the extensions. Options that the paper leaves open (``hidden``, ``lr``, the ablations, ...) can be given.
        encoding: ``"scalar"`` (at most 16 numbers, whatever C is) or ``"vector"`` (9C numbers, the paper's kind; not for more
            than :data:`tgeokd.core.geometry.class_means.DENSE_CLASSES` classes).
        vertices, edges, angles, student_teacher_edge, inter_sample: ablations, as in :func:`tgeokd.geometry.trilateral`.
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
        encoding: Encoding | None = None,
        vertices: bool = True,
        edges: bool = True,
        angles: bool | None = None,
        student_teacher_edge: bool = True,
        inter_sample: bool = True,
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
            outer=outer,
            hypergradient=hypergradient,
            update_interval=update_interval,
            ema_decay=ema_decay,
            project_out_step_length=project_out_step_length,
        )
        self.set_outer(chosen["outer"], outer_batch_size)
        check_at_least(0, lr=lr, weight_decay=weight_decay)
        check_positive("update_interval", chosen["update_interval"])
        scalar = chosen["encoding"] == "scalar"
        angles = scalar if angles is None else angles
        features = GeometryFeatures(vertices, edges, angles, student_teacher_edge, inter_sample)
        self.features = features if scalar else None
        self.switches: dict[str, Any] = {"encoding": chosen["encoding"], **features._asdict()}
        num_features(2, **self.switches)  # refuses an impossible combination before the first step
        self.needs_class_means = inter_sample
        self.hidden = tuple(hidden)
        self.hypergradient, self.update_interval = chosen["hypergradient"], chosen["update_interval"]
        self.inner_samples = inner_samples
        self.ema_decay, self.project_out_step_length = chosen["ema_decay"], chosen["project_out_step_length"]
        self.lr, self.weight_decay = lr, weight_decay
        self.network: RatioNetwork | None = None
        self.optimizer: Adam | None = None
        self.class_means: Tensor | SparseClassMeans | None = None
        self.estimator: Estimator = self._new_estimator()

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Build f_omega. The class means may be sparse, and None without ``inter_sample``."""
        if self.needs_class_means and (class_means is None or class_means.shape != (num_classes, num_classes)):
            given = "none" if class_means is None else f"shape {tuple(class_means.shape)}"
            raise InputError(f"class_means must have shape ({num_classes}, {num_classes}), not {given}")
        sparse = num_classes > DENSE_CLASSES if class_means is None else class_means.is_sparse
        if sparse and self.switches["encoding"] == "vector":
            raise InputError(f"encoding='vector' is too large for {num_classes} classes; use encoding='scalar'")
        self.class_means = None
        if self.needs_class_means and class_means is not None:
            table = class_means.detach().to(device)
            self.class_means = SparseClassMeans.of(table) if sparse else table
        if sparse:
            kept = self.class_means.kept if isinstance(self.class_means, SparseClassMeans) else KEPT
            source = "class mean" if self.needs_class_means else "teacher"
            message = "geometry of %d classes: on the label and the %d largest other entries of the %s"
            logger.info(message, num_classes, kept, source)
        self.network = RatioNetwork(num_features(num_classes, **self.switches), self.hidden).to(device)
        self.optimizer = Adam(self.network.omega, self.lr, self.weight_decay)
        self.estimator = self._new_estimator()

    def _new_estimator(self) -> Estimator:
        if isinstance(self.hypergradient, Estimator):
            return self.hypergradient
        direction = None
        if self.ema_decay or self.project_out_step_length:
            direction = OuterDirection(self.ema_decay, project_out_step_length=self.project_out_step_length)
        return build_estimator(self.hypergradient, direction=direction, inner_samples=self.inner_samples)

    def alpha(self, inputs: LossInputs) -> Tensor:
        """``sigmoid(f_omega(Delta_i))``, detached from the student's graph; attached to omega's where ``inputs.learn``."""
        network, _ = self._built()
        with torch.no_grad():  # faster than building a graph and detaching from it
            features = self._geometry(inputs)
        alpha: Tensor = network(features, learn=inputs.learn)
        return alpha

    def _built(self) -> tuple[RatioNetwork, Adam]:
        if self.network is None or self.optimizer is None:
            raise RuntimeError("TGeoKD needs prepare(num_classes, class_means) before its first batch")
        return self.network, self.optimizer

    def _geometry(self, inputs: LossInputs) -> Tensor:
        student, teacher, means = inputs.student_logits.detach(), inputs.teacher.detach(), self.class_means
        if self.features is not None:
            return scalar_from_logits(student, teacher, inputs.target, means, self.features)
        assert not isinstance(means, SparseClassMeans)
        means = student.new_empty(0) if means is None else means
        return trilateral(student.softmax(dim=-1), teacher.softmax(dim=-1), inputs.target, means, **self.switches)

    def needs_hypergradient(self, step: int) -> bool:
        """In every k-th step, k = ``update_interval``."""
        return bool(step % self.update_interval == 0)

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        """Take one step of omega down the validation loss."""
        network, optimizer = self._built()
        (network.omega.grad,) = torch.autograd.grad(alpha, network.omega, gradient.to(alpha.dtype))
        optimizer.step(network.omega.grad)

    def state_dict(self) -> dict[str, Any]:
        """Omega, its optimizer, the state of the estimator and the class means."""
        network, optimizer = self._built()
        means = self.class_means
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "class_means": means._asdict() if isinstance(means, SparseClassMeans) else means,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after :meth:`prepare`."""
        network, optimizer = self._built()
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        means = state["class_means"]
        self.class_means = SparseClassMeans(**means) if isinstance(means, dict) else means
