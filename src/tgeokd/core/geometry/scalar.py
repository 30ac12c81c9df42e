"""The scalar encoding of the trilateral geometry, in few operations: for a small student each of them counts.

Points and edges of a batch are stacked, shape (points, N, classes). Edges are differences of the points themselves: to take
inner products of edges from those of points would cancel where two points lie close.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tgeokd.core.geometry.class_means import DENSE_CLASSES, KEPT
from tgeokd.core.softmax import log_softmax
from tgeokd.utils.errors import InputError

# The angle at a vertex: its two edges, and the sign that makes both point away from it. M stands for Tbar.
ANGLES_STG = (("ST", "SG", 1.0), ("ST", "TG", -1.0), ("SG", "TG", 1.0))  # at S, T, G
ANGLES_SMG = (("MS", "SG", -1.0), ("MS", "MG", 1.0), ("SG", "MG", 1.0))  # at S, Tbar, G


class GeometryFeatures(NamedTuple):
    """What is included in the encoding; see :func:`tgeokd.geometry.trilateral`."""

    vertices: bool = True
    edges: bool = True
    angles: bool = True
    student_teacher_edge: bool = True
    inter_sample: bool = True


class SparseClassMeans(NamedTuple):
    """Class means as seen on a few classes of each row, the table of the coarsened geometry."""

    # By class, the ids and then the bits of the probabilities: with a table too large for any cache, one place to look a class
    # up is half as slow as two. int32 (C, 2K + 3) for float32 probabilities, int64 for float64.
    rows: Tensor
    dtype: torch.dtype  # of the probabilities

    def look_up(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The ids of classes (N,) and of the K largest others of each, int64, shape (N, K + 1), and their mean probabilities.

        The probabilities, shape (N, K + 2), end with the coordinate of all other classes (:func:`_coarse`).
        """
        rows = self.rows.index_select(0, target)
        ids, probs = rows.tensor_split((self.kept + 1,), dim=-1)
        return ids.long(), probs.view(self.dtype)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.rows)

    @property
    def kept(self) -> int:
        """K, how many classes beside its own a row has."""
        return (self.rows.shape[-1] - 3) // 2

    @classmethod
    def of(cls, class_means: Tensor) -> SparseClassMeans:
        """From the sparse table of :meth:`tgeokd.core.geometry.class_means.ClassMeans.compute`."""
        table = class_means.detach().coalesce()
        num_classes = len(table)
        ids, probs = table.indices()[1], table.values()
        classes = torch.arange(num_classes, device=ids.device).unsqueeze(-1)
        if len(ids) % num_classes == 0:
            ids, probs = ids.view(num_classes, -1), probs.view(num_classes, -1)
            own = ids == classes
            if torch.equal(table.indices()[0].view_as(ids), classes.expand_as(ids)) and bool(own.any(dim=-1).all()):
                others = probs[~own].view(num_classes, -1)
                kept = torch.cat([probs[own].unsqueeze(-1), others], dim=-1)
                rest = (1 - kept.sum(dim=-1, keepdim=True)).clamp(min=0) * max(num_classes - kept.shape[-1], 1) ** -0.5
                ids = torch.cat([classes, ids[~own].view(num_classes, -1)], dim=-1)
                probs = torch.cat([kept, rest], dim=-1)
                probs = probs if probs.dtype == torch.float64 else probs.float()
                bits = probs.view(torch.int64 if probs.dtype == torch.float64 else torch.int32)
                return cls(torch.cat([ids.to(bits.dtype), bits], dim=-1), probs.dtype)
        raise InputError("sparse class_means need the same number of entries in each row, among them the class itself")


Means = Tensor | SparseClassMeans | None


class _Plan(NamedTuple):
    """Constant tensors of a choice of columns; see :func:`_encode`."""

    left: Tensor
    right: Tensor
    order: Tensor
    scale: Tensor
    minus_one: Tensor
    first: Tensor
    shortest: float


def scalar_from_logits(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, class_means: Means, features: GeometryFeatures
) -> Tensor:
    """The scalar encoding of each sample, shape (N, F).

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C).
        target: class indices, shape (N,).
        class_means: a full table of shape (C, C), or a :class:`SparseClassMeans` for the coarsened geometry. Not read without
            the triangle across samples, which coarsens to the teacher's largest entries for very many classes.
        features: what is included.
    """
    S, T = student_logits.detach(), teacher_logits.detach()  # nothing below has a graph
    class_means = class_means if features.inter_sample else None
    if isinstance(class_means, Tensor) or (class_means is None and S.shape[-1] <= DENSE_CLASSES):
        log = log_softmax(torch.stack((T, S)))
        points = log.exp()
        return _full(points, log.mul_(points).sum(dim=-1, keepdim=True), target, class_means, features)
    return _coarse(S.log_softmax(-1), T.log_softmax(-1), *_classes(T, target, class_means), features)


def scalar_from_probs(
    student_probs: Tensor, teacher_probs: Tensor, target: Tensor, class_means: Means, features: GeometryFeatures
) -> Tensor:
    """As :func:`scalar_from_logits`, from probabilities of shape (N, C)."""
    S, T = student_probs.detach(), teacher_probs.detach()
    if isinstance(class_means, Tensor) or (class_means is None and S.shape[-1] <= DENSE_CLASSES):
        points = torch.stack((T, S))
        return _full(points, torch.xlogy(points, points).sum(dim=-1, keepdim=True), target, class_means, features)
    smallest = torch.finfo(S.dtype).tiny  # stands for 0, whose log is not finite
    log_s, log_t = S.clamp_min(smallest).log(), T.clamp_min(smallest).log()
    return _coarse(log_s, log_t, *_classes(T, target, class_means), features)


def num_scalar_features(features: GeometryFeatures) -> int:
    """How many numbers a sample the encoding has."""
    return len(_plan(features, 2, torch.device("cpu"), torch.float32).order)


def _full(
    points: Tensor, entropy: Tensor, target: Tensor, class_means: Tensor | None, features: GeometryFeatures
) -> Tensor:
    """The encoding from the points T and S on all classes."""
    classes = points.shape[-1]
    if class_means is not None:
        means = class_means.detach().index_select(0, target)
        points = torch.cat((points, means.to(points.dtype).unsqueeze(0)))
    return _encode(points, entropy, target, features, classes)


def _classes(teacher: Tensor, target: Tensor, class_means: SparseClassMeans | None) -> tuple[Tensor, Tensor | None]:
    """Of the coarsened geometry the classes, the label first, and the means there; without a table the teacher's largest."""
    if class_means is not None:
        return class_means.look_up(target)
    label = target.unsqueeze(-1)
    return torch.cat((label, teacher.scatter(-1, label, -math.inf).topk(KEPT, dim=-1).indices), dim=-1), None


def _coarse(
    student_log_probs: Tensor, teacher_log_probs: Tensor, ids: Tensor, means: Tensor | None, features: GeometryFeatures
) -> Tensor:
    """The encoding of the points with all that lies outside the classes ``ids`` (N, K + 1), the label first, spread evenly.

    K + 2 coordinates are enough, the last along the direction of the m other classes: their probability over the root of m.
    """
    classes = student_log_probs.shape[-1]
    others = max(classes - ids.shape[-1], 1)
    log = torch.stack((teacher_log_probs.gather(-1, ids), student_log_probs.gather(-1, ids)))
    kept = log.exp()
    rest = kept.sum(dim=-1, keepdim=True).neg_().add_(1).clamp_(min=0)
    entropy = log.mul_(kept).sum(dim=-1, keepdim=True).add_(torch.xlogy(rest, rest / others))
    points = torch.cat((kept, rest.mul_(others**-0.5)), dim=-1)
    if means is not None:
        points = torch.cat((points, means.to(points.dtype).unsqueeze(0)))
    return _encode(points, entropy, None, features, classes)


def _encode(points: Tensor, entropy: Tensor, index: Tensor | None, features: GeometryFeatures, classes: int) -> Tensor:
    """The encoding from T, S and, with the triangle across samples, Tbar, shape (2 or 3, N, coordinates).

    ``entropy`` is that of T and S, in nats, with the sign turned, shape (2, N, 1); ``index`` is the label's coordinate, shape
    (N,), or None for the first.
    """
    plan = _plan(features, classes, points.device, points.dtype)
    shape = (*points.shape[:2], 1)
    label = (plan.first if index is None else index.unsqueeze(-1)).expand(shape)
    to_label = points.scatter_add(-1, label, plan.minus_one.expand(shape))  # T-G, S-G, (Tbar-G)
    edges = torch.cat((to_label, points.diff(dim=0)))  # and S-T, (Tbar-S)
    lengths = torch.linalg.vector_norm(edges, dim=-1, keepdim=True)
    # An edge whose square underflows has no direction: its cosines come out as 0.
    directions = edges.div_(lengths.clamp_min(plan.shortest))
    cosines = (directions.index_select(0, plan.left) * directions.index_select(0, plan.right)).sum(-1, keepdim=True)
    columns = torch.cat((points.gather(-1, label), entropy, lengths, cosines.clamp_(-1.0, 1.0)))
    return columns.index_select(0, plan.order).mul_(plan.scale).squeeze(-1).t()


@lru_cache(maxsize=64)
def _plan(features: GeometryFeatures, classes: int, device: torch.device, dtype: torch.dtype) -> _Plan:
    """Which columns, in which order and with which factor; kept, as moving constants to an accelerator stalls a step."""
    points, of_edge = ["pT", "pS"], ["TG", "SG", "ST"]
    corners = [*ANGLES_STG] if features.student_teacher_edge else []
    if features.inter_sample:
        points, of_edge = ["pT", "pS", "pM"], ["TG", "SG", "MG", "ST", "MS"]
        corners += ANGLES_SMG
    made = [*points, "hT", "hS", *of_edge, *(a + b for a, b, _ in corners)]
    wanted: dict[str, float] = {}
    if features.vertices:
        to_share = -1.0 / math.log(max(classes, 2))  # entropies as a share of log C
        wanted |= dict.fromkeys(["pS", *points], 1.0) | {"hS": to_share, "hT": to_share}
    if features.edges:
        edges = ["TG", "SG", "ST"] if features.student_teacher_edge else ["TG", "SG"]
        wanted |= dict.fromkeys([*edges, "MS", "MG"] if features.inter_sample else edges, 1.0)
    if features.angles:
        wanted |= {a + b: sign for a, b, sign in corners}
    if not wanted:
        raise InputError("vertices, edges and angles are all switched off: nothing is left to encode")

    def positions(names: list[str], where: list[str]) -> Tensor:
        return torch.tensor([where.index(name) for name in names], dtype=torch.int64, device=device)

    return _Plan(
        left=positions([a for a, _, _ in corners], of_edge),
        right=positions([b for _, b, _ in corners], of_edge),
        order=positions(list(wanted), made),
        scale=torch.tensor(list(wanted.values()), dtype=dtype, device=device).view(-1, 1, 1),
        minus_one=torch.tensor(-1.0, dtype=dtype, device=device),
        first=torch.tensor(0, dtype=torch.int64, device=device),
        shortest=math.sqrt(torch.finfo(dtype).tiny),
    )
