"""ShuffleNet (Zhang et al. 2018, 1x with 3 groups) and ShuffleNetV2 (Ma et al. 2018, 1x) with a 1x1 stem for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images, conv1x1, conv3x3, pooled_logits, stage
from tgeokd.models.registry import MODELS

STEM, GROUPS = 24, 3


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Distribute the channels of each group over all groups."""
    grouped: Tensor = x.unflatten(1, (groups, -1))
    return grouped.transpose(1, 2).flatten(1, 2)


class _Unit(nn.Module):
    """Grouped 1x1, depthwise 3x3, grouped 1x1; at stride 2 concatenated with the pooled input, else added to the input."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        own = width - width_in if stride == 2 else width
        middle = own // 4
        self.stride = stride
        self.groups = 1 if width_in == STEM else GROUPS  # the stem has too few channels to split
        self.conv1, self.bn1 = conv1x1(width_in, middle, groups=self.groups), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = conv3x3(middle, middle, stride, groups=middle), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = conv1x1(middle, own, groups=GROUPS), nn.BatchNorm2d(own)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = _shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(out + x)


@MODELS.register("ShuffleV1")
class ShuffleNet(nn.Module):
    """Version 1: three stages of 4, 8 and 4 units, 240, 480 and 960 channels wide, for images of shape (3, H, W)."""

    def __init__(self, *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("ShuffleNet", inputs)
        self.conv1, self.bn1 = conv1x1(3, STEM), nn.BatchNorm2d(STEM)
        self.layer1 = stage(_Unit, 4, STEM, 240, 2)
        self.layer2 = stage(_Unit, 8, 240, 480, 2)
        self.layer3 = stage(_Unit, 4, 480, 960, 2)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return pooled_logits(self.linear, self.layer3(self.layer2(self.layer1(x))))


class _Split(nn.Module):
    """Version 2 at stride 1: the identity on one half of the channels, three convolutions on the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv1x1(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv3x3(half, half, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, width, H, W) to the same."""
        identity, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return _shuffle(torch.cat([identity, out], dim=1), 2)


class _Down(nn.Module):
    """Version 2 at stride 2: two branches, each from all channels to half of the new ones."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv3x3(width_in, width_in, stride=2, groups=width_in), nn.BatchNorm2d(width_in)
        self.conv2, self.bn2 = conv1x1(width_in, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(width_in, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv3x3(half, half, stride=2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / 2, W / 2)."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return _shuffle(torch.cat([left, right], dim=1), 2)


def _unit_v2(width_in: int, width: int, stride: int) -> nn.Module:
    return _Split(width) if stride == 1 else _Down(width_in, width)


@MODELS.register("ShuffleV2")
class ShuffleNetV2(nn.Module):
    """Version 2: three stages of 4, 8 and 4 units, 116, 232 and 464 channels wide, then 1024, for images (3, H, W)."""

    def __init__(self, *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("ShuffleNet", inputs)
        self.conv1, self.bn1 = conv1x1(3, STEM), nn.BatchNorm2d(STEM)
        self.layer1 = stage(_unit_v2, 4, STEM, 116, 2)
        self.layer2 = stage(_unit_v2, 8, 116, 232, 2)
        self.layer3 = stage(_unit_v2, 4, 232, 464, 2)
        self.conv2, self.bn2 = conv1x1(464, 1024), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return pooled_logits(self.linear, F.relu(self.bn2(self.conv2(x))))
