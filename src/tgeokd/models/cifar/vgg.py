"""VGG with batch norm for small images (Simonyan and Zisserman 2015): one linear layer instead of three."""

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images, he_init, pooled_logits
from tgeokd.models.registry import MODELS

WIDTHS = (64, 128, 256, 512, 512)


@MODELS.register("vgg8", (1, 1, 1, 1, 1))
@MODELS.register("vgg11", (1, 1, 2, 2, 2))
@MODELS.register("vgg13", (2, 2, 2, 2, 2))
@MODELS.register("vgg16", (2, 2, 3, 3, 3))
@MODELS.register("vgg19", (2, 2, 4, 4, 4))
class VGG(nn.Module):
    """Five blocks of 3x3 convolutions; max pooling after the first three, and the fourth for images of 64 pixels and more.

    Args:
        convolutions: their number in each block.
        inputs: images of shape (3, H, W), H, W >= 8.
        num_classes: C.
    """

    def __init__(self, convolutions: tuple[int, ...], *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("VGG", inputs, smallest=8)
        self.block0, self.block1, self.block2, self.block3, self.block4 = map(
            _block, convolutions, (3, *WIDTHS), WIDTHS
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_init(self, plain_head=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        pooled = 4 if x.shape[2] >= 64 else 3
        for index, block in enumerate((self.block0, self.block1, self.block2, self.block3)):
            x = F.max_pool2d(F.relu(block(x)), 2) if index < pooled else F.relu(block(x))
        return pooled_logits(self.classifier, F.relu(self.block4(x)))


def _block(number: int, width_in: int, width: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, ``number`` times; without the last ReLU."""
    layers: list[nn.Module] = []
    for index in range(number):
        layers += [nn.Conv2d(width if index else width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
