"""Residual networks for CIFAR with three stages (He et al. 2016, section 4.2), and those four times as wide."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import BasicBlock, check_images, conv3x3, global_average, he_init
from tgeokd.models.registry import MODELS

__all__ = ["ResNet"]

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


class ResNet(nn.Module):
    """A 3x3 stem and three stages of basic blocks.

    Args:
        depth: 6n + 2, for n blocks per stage.
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
    rest = (BasicBlock(width, width, 1, "downsample") for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(width_in, width, stride, "downsample"), *rest)


@MODELS.register("resnet8", 8, NARROW)
@MODELS.register("resnet14", 14, NARROW)
@MODELS.register("resnet20", 20, NARROW)
@MODELS.register("resnet32", 32, NARROW)
@MODELS.register("resnet44", 44, NARROW)
@MODELS.register("resnet56", 56, NARROW)
@MODELS.register("resnet110", 110, NARROW)
@MODELS.register("resnet8x4", 8, WIDE)
@MODELS.register("resnet32x4", 32, WIDE)
def resnet(depth: int, widths: tuple[int, int, int, int], *, inputs: InputSpec, num_classes: int) -> nn.Module:
    """A :class:`ResNet` for images of shape (3, H, W)."""
    check_images("ResNet", inputs)
    return ResNet(depth, widths, num_classes)
