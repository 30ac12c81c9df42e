"""`tgeo`: the fusion ratio of each sample from its trilateral geometry, learned by bilevel optimisation."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.bilevel import Hypergradient, OuterDirection
from tgeokd.core.geometry import Encoding, num_features, trilateral
from tgeokd.core.geometry.class_means import DENSE_CLASSES, KEPT
from tgeokd.core.geometry.scalar import Parts, Support, scalar_from_logits
from tgeokd.methods.base import Method, Outer, Signals, TrainingStep, check_outer
from tgeokd.methods.ratio_network import Adam, RatioNetwork
from tgeokd.utils.errors import InputError

__all__ = ["RatioNetwork", "TGeoKD"]


logger = logging.getLogger(__name__)

LR = 3e-3
DEFAULTS: dict[str, Any] = {
    "encoding": "scalar", "outer": "union", "hypergradient": "auto", "every": 4, "average": 0.9, "fixed_length": True,
}  # fmt: skip
"""What did best on held-out data; docs/why-it-works.md says how it was chosen."""

PAPER: dict[str, Any] = {
    "encoding": "vector", "outer": "holdout", "hypergradient": "exact", "every": 1, "average": 0.0, "fixed_length": False,
}  # fmt: skip
"""What the paper does. Of the hypergradient any exact way will do."""


def _settings(paper: bool, **options: Any) -> dict[str, Any]:
    """The options, by :data:`DEFAULTS` or :data:`PAPER` where they are None."""
    given = {name: value for name, value in options.items() if value is not None}
    if not paper:
        return DEFAULTS | given
    for name, value in given.items():
        exact = name == "hypergradient" and value in ("exact", "forward", "finite_difference", "unrolled")
        if value != PAPER[name] and not exact:
            raise InputError(f"paper=True is the published method, which has {name}={PAPER[name]!r}, not {value!r}")
    return PAPER | given


class TGeoKD(Method):
    """TGeo-KD: learn, for every sample, how much to trust the teacher and how much the label.

    ``alpha_i = sigmoid(f_omega(Delta_i))``, where ``Delta_i`` is the trilateral geometry of the sample
    (:func:`tgeokd.geometry.trilateral`) and ``f_omega`` is trained so that the student's step lowers the held-out loss:
    ``d L_val / d omega = sum_i (d L_val / d alpha_i) (d alpha_i / d omega)``.

    The defaults are not the paper's: they are what did best on held-out data (docs/why-it-works.md). By default the student
    trains **on the held-out samples too** (``outer="union"``), which is said in the log; give ``outer="holdout"`` where these
    samples are to tell how good the student is.

    Args:
        paper: the method exactly as published: ``encoding="vector"``, ``outer="holdout"``, the exact hypergradient in every
            step, and none of the extensions. Options that the paper leaves open (``hidden``, ``lr``, the ablations, ...) can
            still be given.
        encoding: ``"scalar"`` (at most 16 numbers, whatever C is) or ``"vector"`` (9C numbers, the paper's kind; not for more
            than :data:`tgeokd.core.geometry.class_means.DENSE_CLASSES` classes).
        vertices: ablation: include the vertices.
        edges: ablation: include the edges.
        angles: ablation: include the angles; by default on for ``scalar``, off for ``vector``.
        student_teacher_edge: ablation: include the edge between student and teacher.
        inter_sample: ablation: include the teacher's class average.
        hidden: widths of f_omega's hidden layers.
        outer: where outer samples come from. ``"union"``: the held-out data, on which the student trains too.
            ``"holdout"``: held-out data the student never trains on (the paper's protocol). ``"train"``: the training data.
        outer_batch_size: samples in an outer batch; by default those of the held-out loader's batches, at most 128 (where
            the loader is a ``DataLoader`` over a map-style data set; any other is taken as it is).
        hypergradient: how ``d L_val / d alpha`` is found; see :class:`tgeokd.bilevel.Lookahead`.
        every: update omega in every k-th step, by default every fourth; docs/speed.md and docs/why-it-works.md say what that
            costs and why.
        inner_samples: of a step's training samples, how many are asked about the hypergradient; see
            :meth:`tgeokd.bilevel.Lookahead.ratio_gradient`. By default all.
        average: extension: decay of a moving average that stands for the held-out gradient, from one update of omega to the
            next; 0 takes the gradient of one step alone. See :class:`tgeokd.bilevel.OuterDirection`.
        fixed_length: extension: learn from what a ratio does to the direction of the step, not from what it does to its
            length.
        lr: learning rate of omega's Adam.
        weight_decay: weight decay of omega's Adam.

    Reference:
        Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
    """

    name: ClassVar[str] = "tgeo"
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"encoding": ("scalar", "vector"), "lr": (1e-3, 3e-3, 1e-2)}
    looks_ahead = True
    outer_batch_most = 128

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
        hypergradient: Hypergradient | None = None,
        every: int | None = None,
        inner_samples: int | None = None,
        average: float | None = None,
        fixed_length: bool | None = None,
        lr: float = LR,
        weight_decay: float = 0.0,
    ) -> None:
        chosen = _settings(
            paper,
            encoding=encoding,
            outer=outer,
            hypergradient=hypergradient,
            every=every,
            average=average,
            fixed_length=fixed_length,
        )
        encoding, outer, every = chosen["encoding"], chosen["outer"], chosen["every"]
        check_outer(outer, outer_batch_size)
        if lr < 0 or weight_decay < 0:
            raise InputError(f"lr and weight_decay must be >= 0, not {lr} and {weight_decay}")
        if every < 1:
            raise InputError(f"every must be >= 1, not {every}")
        self.switches: dict[str, Any] = {
            "encoding": encoding,
            "vertices": vertices,
            "edges": edges,
            "angles": angles,
            "student_teacher_edge": student_teacher_edge,
            "inter_sample": inter_sample,
        }
        self.parts = None
        if encoding == "scalar":
            self.parts = Parts(vertices, edges, angles is not False, student_teacher_edge, inter_sample)
        num_features(2, **self.switches)  # an impossible combination is refused here, not in the first step
        self.needs_class_means = inter_sample
        self.hidden = tuple(hidden)
        self.outer, self.outer_batch_size = outer, outer_batch_size
        self.hypergradient, self.every, self.inner_samples = chosen["hypergradient"], every, inner_samples
        self.average, self.fixed_length = chosen["average"], chosen["fixed_length"]
        if self.hypergradient == "unrolled" and (self.average or self.fixed_length):
            raise InputError("hypergradient='unrolled' goes with average=0 and fixed_length=False alone")
        self._new_direction()  # an impossible average is refused here
        self.lr, self.weight_decay = lr, weight_decay
        self.network: RatioNetwork | None = None
        self.optimizer: Adam | None = None
        self.class_means: Tensor | Support | None = None
        self._learns = True  # whether the running step will ask for a gradient

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Build f_omega. Called once before training, by the Distiller or at the top of a hand-written loop.

        Args:
            num_classes: C.
            class_means: the teacher's mean prediction by class on the *training* samples, shape (C, C), in full or sparse as
                :class:`tgeokd.geometry.ClassMeans` gives it; may be None without ``inter_sample``.
            device: where batches will be; by default the CPU.
        """
        if self.needs_class_means and (class_means is None or class_means.shape != (num_classes, num_classes)):
            given = "none" if class_means is None else f"shape {tuple(class_means.shape)}"
            raise InputError(f"class_means must have shape ({num_classes}, {num_classes}), got {given}")
        coarse = num_classes > DENSE_CLASSES if class_means is None else class_means.is_sparse
        if coarse and self.switches["encoding"] == "vector":
            raise InputError(
                f"encoding='vector' grows with the number of classes and does not go with {num_classes} of them; "
                "use encoding='scalar'"
            )
        if not self.needs_class_means or class_means is None:
            self.class_means = None
        else:
            table = class_means.detach().to(device)
            self.class_means = Support.of(table) if coarse else table
        if coarse:
            kept = self.class_means.kept if isinstance(self.class_means, Support) else KEPT
            whose = "class mean's" if self.needs_class_means else "teacher's"
            logger.info(
                "geometry: for %d classes on the label and the %s %d largest others, the rest spread evenly",
                num_classes, whose, kept,
            )  # fmt: skip
        self.network = RatioNetwork(num_features(num_classes, **self.switches), self.hidden).to(device)
        self.optimizer = Adam(self.network.omega, self.lr, self.weight_decay)
        self._new_direction()

    def _new_direction(self) -> None:
        plain = not self.average and not self.fixed_length
        self.direction = None if plain else OuterDirection(self.average, fixed_length=self.fixed_length)

    def alpha(self, signals: Signals) -> Tensor:
        """``sigmoid(f_omega(Delta_i))``, detached from the student's graph and attached to omega's, in a step that learns."""
        if self.network is None:
            raise RuntimeError("TGeoKD needs prepare(num_classes, class_means) before its first batch")
        with torch.no_grad():  # spares every operation a look for a graph
            features = self._geometry(signals)
            if not self._learns:
                unlearned: Tensor = self.network(features, learn=False)
                return unlearned
        alpha: Tensor = self.network(features)
        return alpha

    def _geometry(self, signals: Signals) -> Tensor:
        student, teacher, means = signals.student_logits.detach(), signals.teacher.detach(), self.class_means
        if self.parts is not None:
            return scalar_from_logits(student, teacher, signals.target, means, self.parts)
        assert not isinstance(means, Support)
        means = student.new_empty(0) if means is None else means
        return trilateral(student.softmax(dim=-1), teacher.softmax(dim=-1), signals.target, means, **self.switches)

    def before_forward(self, step: TrainingStep) -> None:
        """Note whether the step learns: one that does not needs no graph of omega."""
        self._learns = self.records(step.index)

    def records(self, step_index: int) -> bool:
        """Every k-th step."""
        return step_index % self.every == 0

    def after_update(self, step: TrainingStep) -> None:
        """Ask the finished step for its hypergradient and move omega."""
        if self.records(step.index):
            held_out = step.outer()
            parts = [loss.alpha for loss in step.losses if loss.alpha is not None]
            alpha = torch.cat(parts) if len(parts) > 1 else parts[0]
            gradient = step.lookahead.ratio_gradient(
                held_out.inputs, held_out.target, alpha, inner_samples=self.inner_samples, direction=self.direction
            )
            self.learn(alpha, gradient)
        self._learns = True

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        """Take one step of omega down the held-out loss.

        Args:
            alpha: fusion ratios as :meth:`alpha` gave them, attached to omega's graph, shape (N,).
            gradient: ``d L_val / d alpha_i``, shape (N,).
        """
        assert self.network is not None
        assert self.optimizer is not None
        omega = self.network.omega
        (omega.grad,) = torch.autograd.grad(alpha, omega, gradient.to(alpha.dtype))
        self.optimizer.step(omega.grad)

    def state_dict(self) -> dict[str, Any]:
        """Omega, its optimizer, the averages it learns from and the class means."""
        assert self.network is not None
        assert self.optimizer is not None
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "direction": None if self.direction is None else self.direction.state_dict(),
            "class_means": self.class_means._asdict() if isinstance(self.class_means, Support) else self.class_means,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, after :meth:`prepare`."""
        assert self.network is not None
        assert self.optimizer is not None
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if (self.direction is None) != (state["direction"] is None):
            raise InputError("the run to resume had another average or fixed_length")
        if self.direction is not None:
            self.direction.load_state_dict(state["direction"])
        means = state["class_means"]
        self.class_means = Support(**means) if isinstance(means, dict) else means
