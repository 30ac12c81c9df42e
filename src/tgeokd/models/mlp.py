"""Multilayer perceptrons."""

import math

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.registry import MODELS
from tgeokd.models.table import CategoryEmbedding, check_options, check_table, hidden_layers
from tgeokd.utils.errors import InputError


class TableMLP(nn.Module):
    """An MLP on the numeric columns of a table beside an embedding of each categorical one; the options of :func:`mlp`."""

    def __init__(
        self, inputs: InputSpec, num_classes: int, hidden: tuple[int, ...], embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = CategoryEmbedding(inputs.categories, embedding) if inputs.categories else None
        widths = (inputs.shape[0] + embedding * len(inputs.categories), *hidden)
        self.layers = nn.Sequential(*hidden_layers(widths, dropout))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits (N, C) of numbers (N, M) and codes (N, K)."""
        features = numeric
        if self.embedding is not None:
            features = torch.cat([numeric, self.embedding(categorical).flatten(1)], dim=1)
        logits: Tensor = self.head(self.layers(features))
        return logits


class _First(nn.Module):
    """The first numbers of each sample."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, : self.count]


@MODELS.register("mlp")
def mlp(
    *,
    inputs: InputSpec,
    num_classes: int,
    hidden: tuple[int, ...] = (16,),
    dropout: float = 0.0,
    embedding: int = 8,
    components: int | None = None,
) -> nn.Module:
    """Linear layers with ReLU and dropout between them.

    Args:
        inputs: arrays, which are flattened, or a table, see :class:`TableMLP`.
        num_classes: C.
        hidden: widths of the hidden layers.
        dropout: probability after each hidden layer.
        embedding: length of the vector of a category; only used with a table.
        components: read only this many of an array's numbers, the first (of a config with ``features`` these are the principal
            components with the largest variance); by default all.
    """
    check_options(hidden=list(hidden), embedding=embedding, dropout=dropout)
    if inputs.kind == "table":
        check_table("mlp", inputs)
        return TableMLP(inputs, num_classes, hidden, embedding, dropout)
    size = math.prod(inputs.shape)
    if components is not None and not 1 <= components <= size:
        raise InputError(f"components must lie in [1, {size}], the numbers of a sample, not {components}")
    widths = (components or size, *hidden)
    first = [] if components is None else [_First(components)]
    return nn.Sequential(nn.Flatten(), *first, *hidden_layers(widths, dropout), nn.Linear(widths[-1], num_classes))
