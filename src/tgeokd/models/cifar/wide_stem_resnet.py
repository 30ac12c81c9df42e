"""Residual networks of ImageNet (He et al. 2016) with a 3x3 stem of 64 channels and no pooling before the stages."""

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import (
    BasicBlock,
    check_images,
    conv1x1,
    conv3x3,
    he_init,
    pooled_logits,
    projection,
    stage,
)
from tgeokd.models.registry import MODELS


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, the last to four times as many channels, with a shortcut; ReLU after the sum."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        middle = width // self.expansion
        self.conv1, self.bn1 = conv1x1(width_in, middle), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = conv3x3(middle, middle, stride), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = conv1x1(middle, width), nn.BatchNorm2d(width)
        self.shortcut = projection(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


@MODELS.register("ResNet18", BasicBlock, (2, 2, 2, 2))
@MODELS.register("ResNet34", BasicBlock, (3, 4, 6, 3))
@MODELS.register("ResNet50", Bottleneck, (3, 4, 6, 3))
@MODELS.register("ResNet101", Bottleneck, (3, 4, 23, 3))
class WideStemResNet(nn.Module):
    """A 3x3 stem and four stages.

    Args:
        block: class of the residual blocks.
        blocks: their number in each stage.
        inputs: images of shape (3, H, W).
        num_classes: C.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, ...], *, inputs: InputSpec, num_classes: int
    ) -> None:
        super().__init__()
        check_images("WideStemResNet", inputs)
        self.conv1, self.bn1 = conv3x3(3, 64), nn.BatchNorm2d(64)
        wide = block.expansion
        self.layer1 = stage(block, blocks[0], 64, 64 * wide, 1)
        self.layer2 = stage(block, blocks[1], 64 * wide, 128 * wide, 2)
        self.layer3 = stage(block, blocks[2], 128 * wide, 256 * wide, 2)
        self.layer4 = stage(block, blocks[3], 256 * wide, 512 * wide, 2)
        self.linear = nn.Linear(512 * wide, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return pooled_logits(self.linear, self.layer4(self.layer3(self.layer2(self.layer1(x)))))
