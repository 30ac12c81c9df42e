"""Trilateral geometry: where student, teacher, label and the teacher's class average stand to each other.

Pure functions of probabilities. For one sample there are four points on the probability simplex: the student's
prediction ``S``, the teacher's ``T``, the one-hot label ``G`` and ``Tbar``, the teacher's average prediction over the
training samples of the label's class. They make two triangles: (S, T, G) within the sample, (S, Tbar, G) across samples.

Reference:
    Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from tgeokd.core.geometry.class_means import ClassMeans, class_means
from tgeokd.core.geometry.scalar import ANGLES_SMG, ANGLES_STG, GeometryFeatures, SparseClassMeans, scalar_from_probs
from tgeokd.core.validation import check_choice, check_count, check_logits, check_probs, check_target
from tgeokd.utils.errors import InputError

__all__ = ["ClassMeans", "Encoding", "class_means", "num_features", "trilateral"]

Encoding = Literal["vector", "scalar"]


def trilateral(
    student_probs: Tensor,
    teacher_probs: Tensor,
    target: Tensor,
    class_means: Tensor,
    *,
    encoding: Encoding = "vector",
    vertices: bool = True,
    edges: bool = True,
    angles: bool | None = None,
    student_teacher_edge: bool = True,
    inter_sample: bool = True,
) -> Tensor:
    """Encode the trilateral geometry of each sample as the input of the ratio network.

    ``vector`` (the paper's kind) concatenates the vertices S, T, G, Tbar and the element-wise squared edges T-G, S-G,
    S-T, Tbar-S, Tbar-G: 9C numbers. With ``angles``, the element-wise products of the two edges that meet at each
    vertex are added (they sum to the inner product there): 6C more.

    ``scalar`` gives at most 16 numbers whatever C is, none of which depends on the order of the classes: the probability
    S, T and Tbar give the label and the entropies of S and T as a share of log C (vertices); the Euclidean lengths of the
    five edges; the cosines of the six angles, 0 where one of the two edges has no length. Where ``class_means`` is sparse
    (very many classes), every point is taken with the probability outside the classes stored for the sample's label spread
    evenly over those outside: an orthogonal projection, so that no edge gets longer. Without ``inter_sample`` the teacher's
    largest classes take their place beyond :data:`~tgeokd.core.geometry.class_means.DENSE_CLASSES` classes.

    Args:
        student_probs: S, softmax of the student's logits at temperature 1, shape (N, C).
        teacher_probs: T, likewise.
        target: class indices, shape (N,).
        class_means: Tbar of every class, shape (C, C), for ``scalar`` possibly sparse; not read without ``inter_sample``.
        encoding: ``"vector"`` or ``"scalar"``.
        vertices: include the vertices.
        edges: include the edges.
        angles: include the angles; by default off for ``vector``, on for ``scalar``.
        student_teacher_edge: include the edge S-T, and the angles of the triangle (S, T, G), which determine it.
        inter_sample: include everything of Tbar and of the triangle (S, Tbar, G).

    Returns:
        Shape (N, F), F from :func:`num_features`, detached from every graph.

    Raises:
        InputError: for other types, shapes or ranges, an unknown encoding, ``vector`` with sparse class means, or where
            everything is switched off.
    """
    check_choice("encoding", encoding, Encoding)
    check_logits(student_probs=student_probs, teacher_probs=teacher_probs)
    check_probs(student_probs=student_probs, teacher_probs=teacher_probs)
    check_target(target, student_probs)
    classes = student_probs.shape[-1]
    if inter_sample and class_means.shape != (classes, classes):
        raise InputError(f"class_means must have shape ({classes}, {classes}), not {tuple(class_means.shape)}")
    if encoding == "scalar":
        features = GeometryFeatures(vertices, edges, angles is not False, student_teacher_edge, inter_sample)
        means = (SparseClassMeans.of(class_means) if class_means.is_sparse else class_means) if inter_sample else None
        return scalar_from_probs(student_probs, teacher_probs, target, means, features)
    if inter_sample and class_means.is_sparse:
        raise InputError("encoding='vector' needs class_means in full; for sparse ones use encoding='scalar'")
    with torch.no_grad():
        S, T = student_probs.detach(), teacher_probs.detach()
        index = target.unsqueeze(-1)
        Tbar = class_means.detach()[target].to(S.dtype) if inter_sample else None

        # Edges that end in G subtract 1 at the label: no one-hot matrix is needed for them.
        edge = {"TG": _minus_label(T, index), "SG": _minus_label(S, index)}
        corners: list[tuple[str, str, float]] = []
        if student_teacher_edge:
            edge["ST"] = S - T
            corners += ANGLES_STG
        if Tbar is not None:
            edge |= {"MS": Tbar - S, "MG": _minus_label(Tbar, index)}
            corners += ANGLES_SMG

        columns: list[Tensor] = []
        if vertices:
            G = torch.zeros_like(S).scatter_(-1, index, 1.0)
            columns += [S, T, G] + ([Tbar] if Tbar is not None else [])
        if edges:
            columns += [e.square() for e in edge.values()]
        if angles:
            columns += [sign * edge[a] * edge[b] for a, b, sign in corners]
        if not columns:
            raise InputError("vertices, edges and angles are all switched off: nothing is left to encode")
        return torch.cat(columns, dim=-1)


def num_features(num_classes: int, **switches: Any) -> int:
    """How many numbers :func:`trilateral` gives per sample with the same encoding and switches."""
    check_count(1, num_classes=num_classes)
    empty, no_target = torch.empty(0, num_classes), torch.empty(0, dtype=torch.int64)
    return trilateral(empty, empty, no_target, torch.empty(1, 1).expand(num_classes, num_classes), **switches).shape[-1]


def _minus_label(probs: Tensor, index: Tensor) -> Tensor:
    """``probs - G`` for the one-hot G of ``index``, shape (N, C)."""
    return probs.scatter_add(-1, index, torch.full_like(index, -1, dtype=probs.dtype))
