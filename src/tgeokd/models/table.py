"""Layers for the columns of a table, and the checks of their options."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError


class CategoryEmbedding(nn.Module):
    """A vector of length ``width`` for each code of K categorical columns, all in one matrix: one lookup instead of K."""

    first_code: Tensor

    def __init__(self, categories: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(sum(categories), width)
        nn.init.normal_(self.rows.weight, std=width**-0.5)  # a vector has the norm of one standardized number
        self.register_buffer("first_code", first_codes(categories), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors (N, K, width) of codes (N, K), int64; too large ones are not checked."""
        vectors: Tensor = self.rows(codes + self.first_code)
        return vectors


def first_codes(categories: tuple[int, ...], start: int = 0) -> Tensor:
    """Row of code 0 of each column in a matrix that holds the codes of all columns one after the other, shape (K,)."""
    return torch.tensor([*accumulate(categories, initial=start)][:-1], dtype=torch.int64)


def hidden_layers(widths: Sequence[int], dropout: float) -> list[nn.Module]:
    """Linear layers between the widths, each followed by ReLU and, where its probability is positive, dropout."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers


def check_table(model: str, inputs: InputSpec) -> None:
    """Raise :class:`InputError` unless the inputs are a table with at least one column."""
    if inputs.kind != "table":
        raise InputError(f"model {model!r} takes tables, not inputs of kind {inputs.kind!r} and shape {inputs.shape}")
    if not inputs.shape[0] and not inputs.categories:
        raise InputError(f"model {model!r} needs a table with at least one column")


def check_options(*, dropout: float, **sizes: int | list[int]) -> None:
    """Raise :class:`InputError` for sizes below 1 or a dropout probability outside [0, 1)."""
    for name, size in sizes.items():
        if any(each < 1 for each in (size if isinstance(size, list) else [size])):
            raise InputError(f"{name} must be >= 1, not {size}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1), not {dropout}")
