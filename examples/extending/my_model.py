"""A model: an MLP with residual blocks."""

import math

from torch import Tensor, nn

from tgeokd.data import InputSpec
from tgeokd.utils.errors import InputError


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def residual_mlp(
    *, inputs: InputSpec, num_classes: int, width: int = 64, blocks: int = 2, dropout: float = 0.0
) -> nn.Module:
    """Residual blocks of one width on flattened arrays.

    Args:
        inputs: description of the data's inputs.
        num_classes: C.
        width: of all blocks.
        blocks: their number.
        dropout: probability in each block.
    """
    if inputs.kind != "array":
        raise InputError(f"my_model takes arrays, not inputs of kind {inputs.kind!r}")
    layers = [nn.Flatten(), nn.Linear(math.prod(inputs.shape), width)]
    return nn.Sequential(*layers, *(_Block(width, dropout) for _ in range(blocks)), nn.Linear(width, num_classes))
