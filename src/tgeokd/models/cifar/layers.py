"""Layers, initialization and input checks shared by the families of image models."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError


def conv3x3(width_in: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that preserves the size of the image at stride 1."""
    return nn.Conv2d(width_in, width, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(width_in: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(width_in, width, kernel_size=1, stride=stride, groups=groups, bias=False)


def projection(width_in: int, width: int, stride: int) -> nn.Module:
    """Shortcut of a residual block: the identity, or a 1x1 convolution and batch norm where the shape changes."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(conv1x1(width_in, width, stride), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; ReLU after the sum. ``shortcut`` is the prefix of the shortcut's weights."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str = "shortcut") -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        self.add_module(shortcut, projection(width_in, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + getattr(self, self.shortcut_name)(x))


def stage(
    block: Callable[..., nn.Module], number: int, width_in: int, width: int, stride: int, *options: Any
) -> nn.Sequential:
    """Blocks ``block(width_in, width, stride, *options)``, the others than the first from ``width`` at stride 1."""
    rest = (block(width, width, 1, *options) for _ in range(number - 1))
    return nn.Sequential(block(width_in, width, stride, *options), *rest)


def pooled_logits(head: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, C) of the mean over the image of (N, F, H, W), at 32x32 the pooling of the published models."""
    logits: Tensor = head(x.mean(dim=(2, 3)))
    return logits


def he_init(model: nn.Module, *, plain_head: bool = False) -> None:
    """Initialize convolutions from N(0, 2 / fan_out), He et al. 2015, with biases 0.

    With ``plain_head``, linear layers are initialized from N(0, 0.01^2) with biases 0, as in VGG and MobileNet.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and plain_head:
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_images(model: str, inputs: InputSpec, smallest: int = 1) -> None:
    """Raise :class:`InputError` unless the inputs are colour images with this least height and width."""
    if inputs.kind != "array" or len(inputs.shape) != 3 or inputs.shape[0] != 3 or min(inputs.shape) < 1:
        raise InputError(f"{model} takes images (3, H, W), not inputs of kind {inputs.kind!r} and shape {inputs.shape}")
    if min(inputs.shape[1:]) < smallest:
        raise InputError(f"{model} takes images of at least {smallest}x{smallest}, not of shape {inputs.shape}")
