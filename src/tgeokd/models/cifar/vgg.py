"""VGG with batch norm for small images (Simonyan and Zisserman 2015): one linear layer in place of the three."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.models.cifar._parts import global_average, he_init, image_model

__all__ = ["MODELS", "VGG"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with max pooling between them.

    Small images are pooled after the first three blocks; from 64 pixels on also after the fourth.

    Args:
        convolutions: how many there are in each block.
        num_classes: C.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(number, width_in, width)
            for number, width_in, width in zip(convolutions, (3, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_init(self, plain_head=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        large = x.shape[2] >= 64
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(F.relu(block(x)), 2)
        x = F.relu(self.block3(x))
        if large:
            x = F.max_pool2d(x, 2)
        logits: Tensor = self.classifier(global_average(F.relu(self.block4(x))))
        return logits


def _block(number: int, width_in: int, width: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, ``number`` times; the last ReLU is left to the caller."""
    layers: list[nn.Module] = []
    for index in range(number):
        layers += [nn.Conv2d(width if index else width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


MODELS = {
    name: image_model(name, partial(VGG, convolutions), smallest=8)
    for name, convolutions in {
        "vgg8": (1, 1, 1, 1, 1),
        "vgg11": (1, 1, 2, 2, 2),
        "vgg13": (2, 2, 2, 2, 2),
        "vgg16": (2, 2, 3, 3, 3),
        "vgg19": (2, 2, 4, 4, 4),
    }.items()
}
