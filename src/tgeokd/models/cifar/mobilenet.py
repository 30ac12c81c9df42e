"""MobileNetV2 (Sandler et al. 2018) at half width with strides for small images; mobile_half in RepDistiller."""

from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images, conv1x1, conv3x3, he_init, pooled_logits, stage
from tgeokd.models.registry import MODELS

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STEM, LAST = 16, 1280


class _InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a narrowing linear 1x1 convolution; added to an input of the same shape."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = expansion * width_in
        self.adds = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            *_active(conv1x1(width_in, middle)),
            *_active(conv3x3(middle, middle, stride, groups=middle)),
            conv1x1(middle, width),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


@MODELS.register("MobileNetV2")
class MobileNetV2(nn.Module):
    """A 3x3 stem at stride 2, seven stages of inverted residuals, and 1280 features, for images of shape (3, H, W)."""

    def __init__(self, *, inputs: InputSpec, num_classes: int) -> None:
        super().__init__()
        check_images("MobileNetV2", inputs)
        self.conv1 = _active(conv3x3(3, STEM, stride=2))
        before, stages = STEM, []
        for expansion, channels, blocks, stride in STAGES:
            stages.append(stage(_InvertedResidual, blocks, before, channels, stride, expansion))
            before = channels
        self.blocks = nn.Sequential(*stages)
        self.conv2 = _active(conv1x1(before, LAST))
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        he_init(self, plain_head=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        return pooled_logits(self.classifier, self.conv2(self.blocks(self.conv1(x))))


def _active(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())
