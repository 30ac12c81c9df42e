"""Multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from tgeokd.errors import InputError

__all__ = ["mlp"]


def mlp(*, in_features: int, num_classes: int, hidden: tuple[int, ...] = (16,), dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU and, where asked, dropout between them.

    Args:
        in_features: numbers a sample; inputs of more dimensions are flattened.
        num_classes: C.
        hidden: widths of the hidden layers.
        dropout: probability after each hidden layer.

    Raises:
        InputError: for an impossible width or probability.
    """
    if any(width < 1 for width in hidden):
        raise InputError(f"hidden widths must be >= 1, not {list(hidden)}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1), not {dropout}")
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise((in_features, *hidden)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear((in_features, *hidden)[-1], num_classes))
