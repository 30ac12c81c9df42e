"""Trilateral geometry: where student, teacher, label and the teacher's class average stand to each other.

Pure functions of probabilities. For one sample there are four points on the probability simplex: the student's
prediction ``S``, the teacher's ``T``, the one-hot label ``G`` and ``Tbar``, the teacher's average prediction over the
training samples of the label's class. They make two triangles: (S, T, G) within the sample, (S, Tbar, G) across samples.

Reference:
    Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from tgeokd.errors import InputError

__all__ = ["ClassMeans", "Encoding", "class_means", "num_features", "trilateral"]

Encoding = Literal["vector", "scalar"]


class ClassMeans:
    """The teacher's mean prediction for each class, gathered batch by batch.

    Args:
        num_classes: C.

    Example:
        >>> means = ClassMeans(num_classes=10)
        >>> for inputs, target in loader:                                        # doctest: +SKIP
        ...     means.update(teacher(inputs).softmax(dim=-1), target)
        >>> table = means.compute()                                              # shape (10, 10)  # doctest: +SKIP
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # float64 sums: a class mean must not depend on how the samples were cut into batches.
        self._sums = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self._counts = torch.zeros(num_classes, dtype=torch.float64)
        self._dtype = torch.get_default_dtype()

    @property
    def counts(self) -> Tensor:
        """Samples seen of each class, shape (C,)."""
        return self._counts

    def update(self, teacher_probs: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            teacher_probs: shape (N, C), softmax of the teacher's logits at temperature 1.
            target: class indices, shape (N,).

        Raises:
            ValueError: where ``teacher_probs`` has another number of classes.
        """
        if teacher_probs.shape[-1] != self.num_classes:
            raise InputError(f"teacher_probs has {teacher_probs.shape[-1]} classes, expected {self.num_classes}")
        if self._sums.device != teacher_probs.device:
            self._sums, self._counts = self._sums.to(teacher_probs.device), self._counts.to(teacher_probs.device)
        self._dtype = teacher_probs.dtype
        self._sums.index_add_(0, target, teacher_probs.double())
        self._counts += torch.bincount(target, minlength=self.num_classes)

    def compute(self) -> Tensor:
        """The means, shape (C, C): row ``c`` for class ``c``.

        A class without a sample gets the uniform distribution; one warning names all such classes.
        """
        empty = (self._counts == 0).nonzero().flatten().tolist()
        means = self._sums / self._counts.clamp(min=1).unsqueeze(-1)
        if empty:
            shown = ", ".join(map(str, empty[:20])) + (", ..." if len(empty) > 20 else "")
            warnings.warn(f"no training sample of class {shown}: its teacher mean is taken to be uniform", stacklevel=2)
            means[empty] = 1.0 / self.num_classes
        return means.to(self._dtype)


def class_means(teacher_probs: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Mean of the teacher's predictions over the training samples of each class.

    Use training samples only: held-out or test predictions in this table would leak into the fusion ratio.
    :class:`ClassMeans` does the same batch by batch.

    Args:
        teacher_probs: shape (N, C), softmax of the teacher's logits at temperature 1.
        target: class indices, shape (N,).
        num_classes: C.

    Returns:
        Shape (C, C): row ``c`` is the mean for class ``c``, the uniform distribution where the class has no sample
        (one warning names those classes).
    """
    means = ClassMeans(num_classes)
    means.update(teacher_probs, target)
    return means.compute()


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
    five edges; the cosines of the six angles, 0 where one of the two edges has no length.

    Args:
        student_probs: S, softmax of the student's logits at temperature 1, shape (N, C).
        teacher_probs: T, likewise.
        target: class indices, shape (N,).
        class_means: Tbar of every class, shape (C, C); see :func:`class_means`. Not read where ``inter_sample`` is off.
        encoding: ``"vector"`` or ``"scalar"``.
        vertices: include the vertices.
        edges: include the edges.
        angles: include the angles; by default off for ``vector``, on for ``scalar``.
        student_teacher_edge: include the edge S-T, and the angles of the triangle (S, T, G), which determine it.
        inter_sample: include everything of Tbar and of the triangle (S, Tbar, G).

    Returns:
        Shape (N, F), F as :func:`num_features` says, detached from every graph.

    Raises:
        ValueError: for an unknown encoding, or where every part is switched off.

    Reference:
        Hu et al., ICLR 2024, the intra-sample and inter-sample relations.
    """
    if encoding not in get_args(Encoding):
        raise InputError(f"encoding must be 'vector' or 'scalar', not {encoding!r}")
    with torch.no_grad():
        S, T = student_probs.detach(), teacher_probs.detach()
        index = target.unsqueeze(-1)
        Tbar = class_means.detach()[target].to(S.dtype) if inter_sample else None

        # Edges that end in G subtract 1 at the label: no one-hot matrix is needed for them.
        edge = {"TG": _minus_label(T, index), "SG": _minus_label(S, index)}
        # The angle at a vertex: its two edges, and the sign that makes both point away from it.
        corners: list[tuple[str, str, float]] = []
        if student_teacher_edge:
            edge["ST"] = S - T
            corners += [("ST", "SG", 1.0), ("ST", "TG", -1.0), ("SG", "TG", 1.0)]  # at S, T, G
        if Tbar is not None:
            edge |= {"MS": Tbar - S, "MG": _minus_label(Tbar, index)}
            corners += [("MS", "SG", -1.0), ("MS", "MG", 1.0), ("SG", "MG", 1.0)]  # at S, Tbar, G

        if angles is None:
            angles = encoding == "scalar"
        parts: list[Tensor] = []
        if encoding == "vector":
            if vertices:
                G = torch.zeros_like(S).scatter_(-1, index, 1.0)
                parts += [S, T, G] + ([Tbar] if Tbar is not None else [])
            if edges:
                parts += [e.square() for e in edge.values()]
            if angles:
                parts += [sign * edge[a] * edge[b] for a, b, sign in corners]
        else:
            length = {name: e.norm(dim=-1, keepdim=True) for name, e in edge.items()}
            if vertices:
                parts += [P.gather(-1, index) for P in (S, T, Tbar) if P is not None] + [_entropy(S), _entropy(T)]
            if edges:
                parts += length.values()
            if angles:
                parts += [
                    _cosine(sign * (edge[a] * edge[b]).sum(dim=-1, keepdim=True), length[a] * length[b])
                    for a, b, sign in corners
                ]
        if not parts:
            raise InputError("vertices, edges and angles are all switched off: nothing is left to encode")
        return torch.cat(parts, dim=-1)


def num_features(
    num_classes: int,
    *,
    encoding: Encoding = "vector",
    vertices: bool = True,
    edges: bool = True,
    angles: bool | None = None,
    student_teacher_edge: bool = True,
    inter_sample: bool = True,
) -> int:
    """How many numbers :func:`trilateral` gives per sample with the same switches."""
    empty = torch.empty(0, num_classes)
    return trilateral(
        empty,
        empty,
        torch.empty(0, dtype=torch.int64),
        torch.empty(1, num_classes),
        encoding=encoding,
        vertices=vertices,
        edges=edges,
        angles=angles,
        student_teacher_edge=student_teacher_edge,
        inter_sample=inter_sample,
    ).shape[-1]


def _minus_label(probs: Tensor, index: Tensor) -> Tensor:
    """``probs - G`` for the one-hot G of ``index``, shape (N, C)."""
    return probs.scatter_add(-1, index, torch.full_like(index, -1, dtype=probs.dtype))


def _entropy(probs: Tensor) -> Tensor:
    """Entropy as a share of its maximum log C, shape (N, 1)."""
    entropy: Tensor = torch.special.entr(probs).sum(dim=-1, keepdim=True)
    return entropy / math.log(max(probs.shape[-1], 2))


def _cosine(dot: Tensor, lengths: Tensor) -> Tensor:
    """Cosine from an inner product and the product of the two lengths; 0 where one of them is zero."""
    cosine: Tensor = torch.where(lengths > 0, dot / lengths, 0.0)
    return cosine.clamp(-1.0, 1.0)
