"""Residual networks of ImageNet (He et al. 2016) with a 3x3 stem of 64 channels and no pooling before the stages."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import BasicBlock, check_images, conv1x1, conv3x3, global_average, he_init, projection
from tgeokd.models.registry import MODELS

__all__ = ["Bottleneck", "WideStemResNet"]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, the last to four times the width, with a shortcut; ReLU after the sum."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv1x1(width_in, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1x1(width, 4 * width), nn.BatchNorm2d(4 * width)
        self.shortcut = projection(width_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class WideStemResNet(nn.Module):
    """A 3x3 stem and four stages.

    Args:
        block: class of the residual blocks.
        blocks: their number in each stage.
        num_classes: C.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 64), nn.BatchNorm2d(64)
        wide = block.expansion
        self.layer1 = _stage(block, blocks[0], 64, 64, stride=1)
        self.layer2 = _stage(block, blocks[1], 64 * wide, 128, stride=2)
        self.layer3 = _stage(block, blocks[2], 128 * wide, 256, stride=2)
        self.layer4 = _stage(block, blocks[3], 256 * wide, 512, stride=2)
        self.linear = nn.Linear(512 * wide, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(global_average(x))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], number: int, width_in: int, width: int, stride: int
) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(number - 1))
    return nn.Sequential(block(width_in, width, stride), *rest)


@MODELS.register("ResNet18", BasicBlock, (2, 2, 2, 2))
@MODELS.register("ResNet34", BasicBlock, (3, 4, 6, 3))
@MODELS.register("ResNet50", Bottleneck, (3, 4, 6, 3))
@MODELS.register("ResNet101", Bottleneck, (3, 4, 23, 3))
def wide_stem_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, int, int, int],
    *,
    inputs: InputSpec,
    num_classes: int,
) -> nn.Module:
    """A :class:`WideStemResNet` for images of shape (3, H, W)."""
    check_images("WideStemResNet", inputs)
    return WideStemResNet(block, blocks, num_classes)
