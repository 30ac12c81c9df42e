"""Residual networks for CIFAR with three stages (He et al. 2016, section 4.2), plain and four times as wide."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.models.cifar._parts import conv3x3, global_average, he_init, image_model, projection

__all__ = ["MODELS", "ResNet"]

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them; ReLU after the sum."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.downsample = projection(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class ResNet(nn.Module):
    """A 3x3 stem and three stages of basic blocks.

    Args:
        depth: 6n + 2, for n blocks a stage.
        widths: channels of the stem and of each stage.
        num_classes: C.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(global_average(self.layer3(self.layer2(self.layer1(x)))))
        return logits


def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(width_in, width, stride), *(_Block(width, width, 1) for _ in range(blocks - 1)))


MODELS = {
    name: image_model(name, partial(ResNet, depth, widths))
    for name, depth, widths in [
        *((f"resnet{depth}", depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)),
        *((f"resnet{depth}x4", depth, WIDE) for depth in (8, 32)),
    ]
}
