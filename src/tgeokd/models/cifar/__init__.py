"""Models for 32x32 images under the names that distillation papers use.

Parameter names and shapes are those of RepDistiller and mdistiller, so that the teachers they publish load unchanged
(:func:`tgeokd.models.weights.load_weights`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tgeokd.models.cifar import mobilenet, resnet, shufflenet, vgg, wide_stem_resnet, wrn

__all__ = ["CIFAR_MODELS"]

CIFAR_MODELS: dict[str, Callable[..., nn.Module]] = (
    resnet.MODELS | wrn.MODELS | vgg.MODELS | wide_stem_resnet.MODELS | shufflenet.MODELS | mobilenet.MODELS
)
