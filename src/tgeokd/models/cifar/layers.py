"""Layers, initialization and input checks shared by the families of image models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError

__all__ = ["BasicBlock", "check_images", "conv1x1", "conv3x3", "global_average", "he_init", "projection"]


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
    """Two 3x3 convolutions with a shortcut; ReLU after the sum.

    Args:
        width_in: channels of the input.
        width: channels of the output.
        stride: of the first convolution.
        shortcut: attribute of the shortcut, and so the prefix of its weights' names.

    Shapes: (N, width_in, H, W) to (N, width, H / stride, W / stride).
    """

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str = "shortcut") -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        self.add_module(shortcut, projection(width_in, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + getattr(self, self.shortcut_name)(x))


def global_average(x: Tensor) -> Tensor:
    """Mean over the image, (N, C, H, W) to (N, C): at 32x32 the pooling of the published models, and for other sizes."""
    return x.mean(dim=(2, 3))


def he_init(model: nn.Module, *, plain_head: bool = False) -> None:
    """Convolutions from N(0, 2 / fan_out), He et al. 2015, with biases 0.

    Args:
        model: changed in place.
        plain_head: linear layers from N(0, 0.01^2) with biases 0, as in VGG and MobileNet; else as PyTorch initializes them.
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
    """Raise :class:`InputError` unless the inputs are colour images.

    Args:
        model: name for the message.
        inputs: description of the data's inputs.
        smallest: least height and width that the model can take.
    """
    if inputs.kind != "array" or len(inputs.shape) != 3 or inputs.shape[0] != 3 or min(inputs.shape) < 1:
        raise InputError(
            f"{model} takes images of shape (3, H, W), not inputs of kind {inputs.kind!r} and shape {inputs.shape}"
        )
    if min(inputs.shape[1:]) < smallest:
        raise InputError(f"{model} takes images of at least {smallest}x{smallest}, not of shape {inputs.shape}")
