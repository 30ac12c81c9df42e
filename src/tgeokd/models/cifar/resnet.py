"""Residual networks for CIFAR with three stages (He et al. 2016, section 4.2), and those four times as wide."""

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import BasicBlock, check_images, conv3x3, he_init, pooled_logits, stage
from tgeokd.models.registry import MODELS

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


@MODELS.register("resnet8", 8, NARROW)
@MODELS.register("resnet14", 14, NARROW)
@MODELS.register("resnet20", 20, NARROW)
@MODELS.register("resnet32", 32, NARROW)
@MODELS.register("resnet44", 44, NARROW)
@MODELS.register("resnet56", 56, NARROW)
@MODELS.register("resnet110", 110, NARROW)
@MODELS.register("resnet8x4", 8, WIDE)
@MODELS.register("resnet32x4", 32, WIDE)
class ResNet(nn.Module):
    """A 3x3 stem and three stages of basic blocks.

    Args:
        depth: 6n + 2, for n blocks per stage.
        widths: channels of the stem and of each stage.
        inputs: images of shape (3, H, W).
        num_classes: C.
    """

    def __init__(self, depth: int, widths: tuple[int, ...], *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("ResNet", inputs)
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0])
        self.layer1 = stage(BasicBlock, blocks, widths[0], widths[1], 1, "downsample")
        self.layer2 = stage(BasicBlock, blocks, widths[1], widths[2], 2, "downsample")
        self.layer3 = stage(BasicBlock, blocks, widths[2], widths[3], 2, "downsample")
        self.fc = nn.Linear(widths[3], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return pooled_logits(self.fc, self.layer3(self.layer2(self.layer1(x))))
