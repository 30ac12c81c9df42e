"""The geometry in logarithms: what student, teacher and class means say of the label, as numbers that resolve small chances.

A probability of the label of 0.001 and one of 0.1 are both near 0, and mean very different things of 100 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgeokd.core.geometry.scalar import SparseClassMeans
from tgeokd.core.softmax import log_softmax

SMALLEST = 1e-9  # probability that stands for less


def num_log_features(*, inter_sample: bool = True) -> int:
    """How many numbers a sample the encoding has."""
    return 11 if inter_sample else 8


def log_features(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    class_means: Tensor | SparseClassMeans | None,
    evidence: Tensor,
) -> Tensor:
    """The logarithmic encoding of each sample, shape (N, F), without a graph.

    With ``t`` the teacher's most probable class, these are ``log S_y``, ``log T_y``, ``log S_t``, ``log T_t``, the negative
    entropies of S and T, the length of the edge S-T and the evidence; with class means also ``log Tbar_y[y]``,
    ``log Tbar_y[t]`` and ``log Tbar_t[y]``.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C).
        target: class indices, shape (N,).
        class_means: shape (C, C), or sparse for very many classes, or None.
        evidence: any further number of each sample, shape (N,).
    """
    log_s, log_t = (log_softmax(z.detach()) for z in (student_logits, teacher_logits))
    S, T = log_s.exp(), log_t.exp()
    best, top = log_t.max(dim=-1)
    label = target.unsqueeze(-1)
    columns = [
        log_s.gather(-1, label).squeeze(-1),
        log_t.gather(-1, label).squeeze(-1),
        log_s.gather(-1, top.unsqueeze(-1)).squeeze(-1),
        best,
        (S * log_s).sum(dim=-1),
        (T * log_t).sum(dim=-1),
        (S - T).square_().sum(dim=-1).sqrt_(),
        evidence,
    ]
    if class_means is not None:
        pairs = ((target, target), (target, top), (top, target))
        columns += [_mean_of(class_means, row, column).clamp_min(SMALLEST).log() for row, column in pairs]
    return torch.stack(columns, dim=-1)


def _mean_of(class_means: Tensor | SparseClassMeans, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (row, column) of the class means, shape (N,); of a sparse table, the rest of a row is spread evenly."""
    if isinstance(class_means, Tensor):
        return class_means[rows, columns]
    ids, probs = class_means.look_up(rows)
    found = ids == columns.unsqueeze(-1)
    others = max(class_means.num_classes - ids.shape[-1], 1)
    rest = probs[:, -1] * others**-0.5  # stored with the root of their number, see SparseClassMeans
    return torch.where(found.any(dim=-1), (probs[:, :-1] * found).sum(dim=-1), rest)
