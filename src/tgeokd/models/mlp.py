"""Multilayer perceptrons."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from tgeokd.data.base import InputSpec
from tgeokd.models.table import table_mlp
from tgeokd.utils.errors import InputError

__all__ = ["mlp"]


def mlp(
    *,
    inputs: InputSpec,
    num_classes: int,
    hidden: tuple[int, ...] = (16,),
    dropout: float = 0.0,
    embedding: int = 8,
) -> nn.Module:
    """Linear layers with ReLU and, where asked, dropout between them.

    Args:
        inputs: arrays are flattened; of a table, the numeric columns stand beside an embedding of each categorical one.
        num_classes: C.
        hidden: widths of the hidden layers.
        dropout: probability after each hidden layer.
        embedding: numbers that stand for a category of a table.

    Raises:
        InputError: for an impossible width or probability.
    """
    if any(width < 1 for width in hidden):
        raise InputError(f"hidden widths must be >= 1, not {list(hidden)}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1), not {dropout}")
    if inputs.kind == "table":
        return table_mlp(inputs=inputs, num_classes=num_classes, hidden=hidden, dropout=dropout, embedding=embedding)
    in_features = math.prod(inputs.shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise((in_features, *hidden)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear((in_features, *hidden)[-1], num_classes))
