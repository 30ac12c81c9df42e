"""Wide & Deep models for tables."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.table import CategoryEmbedding
from tgeokd.utils.errors import InputError

__all__ = ["WideDeep", "wide_deep"]

EMBEDDING_SD = 0.01


class WideDeep(nn.Module):
    """A linear model on all columns (wide) and an MLP on embeddings (deep), added up.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016. The wide scores enter the last layer beside the
    deep features, so the logits are the output of one linear layer. It starts with weight 1 from each score to its class.

    Args:
        numeric: M, number of numeric columns.
        categories: codes of each categorical column.
        num_classes: C; there are C - 1 wide scores, class 0 being the reference.
        embedding: numbers a category is embedded in.
        hidden: widths of the deep layers, at least one.
        dropout: probability after each of them.
    """

    def __init__(
        self,
        numeric: int,
        categories: tuple[int, ...],
        num_classes: int,
        embedding: int,
        hidden: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.scores = scores = num_classes - 1
        self.embedding = CategoryEmbedding(categories, embedding) if categories else None
        self.wide_categories = CategoryEmbedding(categories, scores) if categories else None
        self.wide_numeric = nn.Linear(numeric, scores, bias=False) if numeric else None
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise((numeric + embedding * len(categories), *hidden)):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1] + scores, num_classes)
        with torch.no_grad():
            if self.embedding is not None and self.wide_categories is not None:
                self.embedding.rows.weight.normal_(
                    std=EMBEDDING_SD
                )  # a category seen never or seldom should say little
                self.wide_categories.rows.weight.zero_()
            self.head.weight[:, hidden[-1] :] = torch.eye(num_classes)[:, 1:]

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits (N, C) of numbers (N, M) and codes (N, K)."""
        features, wide = numeric, numeric.new_zeros(len(numeric), self.scores)
        if self.embedding is not None and self.wide_categories is not None:
            features = torch.cat([numeric, self.embedding(categorical).flatten(1)], dim=1)
            wide = self.wide_categories(categorical).sum(dim=1)
        if self.wide_numeric is not None:
            wide = wide + self.wide_numeric(numeric)
        logits: Tensor = self.head(torch.cat([self.deep(features), wide], dim=1))
        return logits


def wide_deep(
    *,
    inputs: InputSpec,
    num_classes: int,
    embedding: int = 16,
    hidden: tuple[int, ...] = (400, 400, 400),
    dropout: float = 0.0,
) -> nn.Module:
    """A :class:`WideDeep` model of a table.

    Args:
        inputs: of the data; must be a table.
        num_classes: C.
        embedding: numbers a category is embedded in.
        hidden: widths of the deep layers.
        dropout: probability after each of them.

    Raises:
        InputError: for inputs that are no table, or an impossible width or probability.
    """
    if inputs.kind != "table":
        raise InputError(f"wide_deep takes tables, and this task's inputs are arrays of shape {list(inputs.shape)}")
    if not inputs.shape[0] and not inputs.categories:
        raise InputError("wide_deep needs a table with at least one column")
    if embedding < 1:
        raise InputError(f"embedding must be >= 1, not {embedding}")
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(f"hidden must be one or more widths >= 1, not {list(hidden)}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1), not {dropout}")
    return WideDeep(inputs.shape[0], inputs.categories, num_classes, embedding, hidden, dropout)
