"""A multilayer perceptron on tables: numbers beside embeddings of the categorical columns."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError

__all__ = ["CategoryEmbedding", "table_mlp"]


class CategoryEmbedding(nn.Module):
    """A vector for each code of each categorical column, all in one matrix: one look-up instead of K.

    Args:
        categories: number of codes of each column, K numbers; codes beyond them are not checked.
        width: numbers a vector.

    Shapes: codes (N, K), int64, to (N, K, width).
    """

    first_code: Tensor

    def __init__(self, categories: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(sum(categories), width)
        nn.init.normal_(self.rows.weight, std=width**-0.5)  # a vector weighs as much as one standardised number
        first = [0, *accumulate(categories)][: len(categories)]
        self.register_buffer("first_code", torch.tensor(first, dtype=torch.int64), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Look the codes up."""
        vectors: Tensor = self.rows(codes + self.first_code)
        return vectors


class TableMLP(nn.Module):
    """See :func:`table_mlp`."""

    def __init__(
        self, inputs: InputSpec, num_classes: int, hidden: tuple[int, ...], embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = CategoryEmbedding(inputs.categories, embedding) if inputs.categories else None
        widths = (inputs.shape[0] + embedding * len(inputs.categories), *hidden)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits, shape (N, C), from numbers (N, M) and codes (N, K)."""
        features = numeric
        if self.embedding is not None:
            features = torch.cat([numeric, self.embedding(categorical).flatten(1)], dim=1)
        logits: Tensor = self.head(self.layers(features))
        return logits


def table_mlp(
    *,
    inputs: InputSpec,
    num_classes: int,
    hidden: tuple[int, ...] = (64, 32),
    embedding: int = 8,
    dropout: float = 0.0,
) -> nn.Module:
    """Linear layers with ReLU and, where asked, dropout between them, on the columns of a table.

    Args:
        inputs: of kind ``table``.
        num_classes: C.
        hidden: widths of the hidden layers.
        embedding: numbers that stand for a category, the same for every categorical column.
        dropout: probability after each hidden layer.

    Raises:
        InputError: for inputs that are not a table, or an impossible width.
    """
    if inputs.kind != "table":
        raise InputError(f"table_mlp reads tables, not inputs of kind {inputs.kind!r}")
    if embedding < 1:
        raise InputError(f"embedding must be >= 1, not {embedding}")
    return TableMLP(inputs, num_classes, hidden, embedding, dropout)
