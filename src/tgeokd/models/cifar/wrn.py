"""Wide residual networks (Zagoruyko and Komodakis 2016), with batch norm and ReLU before each convolution."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images, conv1x1, conv3x3, he_init, pooled_logits, stage
from tgeokd.models.registry import MODELS


class _Block(nn.Module):
    """Two pre-activated 3x3 convolutions; where the width changes, the shortcut starts after the first activation."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), conv3x3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width)
        self.convShortcut = None if width_in == width else conv1x1(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut
        return out


@MODELS.register("wrn_16_1", 16, 1)
@MODELS.register("wrn_16_2", 16, 2)
@MODELS.register("wrn_40_1", 40, 1)
@MODELS.register("wrn_40_2", 40, 2)
class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels and three stages.

    Args:
        depth: 6n + 4, for n blocks per stage.
        widen: the stages have 16, 32 and 64 times as many channels.
        inputs: images of shape (3, H, W).
        num_classes: C.
    """

    def __init__(self, depth: int, widen: int, *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("WideResNet", inputs)
        blocks, width = (depth - 4) // 6, 64 * widen
        self.conv1 = conv3x3(3, 16)
        self.block1 = _stage(blocks, 16, 16 * widen, stride=1)
        self.block2 = _stage(blocks, 16 * widen, 32 * widen, stride=2)
        self.block3 = _stage(blocks, 32 * widen, width, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        he_init(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return pooled_logits(self.fc, F.relu(self.bn1(x)))


def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
    layers = stage(_Block, blocks, width_in, width, stride)
    return nn.Sequential(OrderedDict(layer=layers))  # as in published weights: block1.layer.0...
