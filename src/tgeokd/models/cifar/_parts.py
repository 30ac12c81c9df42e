"""What the CIFAR families share: their layers, their initialisation, and the check of what they are given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.utils.errors import InputError

__all__ = ["conv1x1", "conv3x3", "global_average", "he_init", "image_model", "projection", "refuse_all_but_images"]


def conv3x3(width_in: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image's size at stride 1."""
    return nn.Conv2d(width_in, width, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(width_in: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(width_in, width, kernel_size=1, stride=stride, groups=groups, bias=False)


def projection(width_in: int, width: int, stride: int) -> nn.Module:
    """The way around a residual block: nothing where the shape stays, else a 1x1 convolution and batch norm."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(conv1x1(width_in, width, stride), nn.BatchNorm2d(width))


def global_average(x: Tensor) -> Tensor:
    """Mean over the image, (N, C, H, W) to (N, C). At 32x32 it is the published nets' pooling; it also fits other sizes."""
    return x.mean(dim=(2, 3))


def he_init(model: nn.Module, *, plain_head: bool = False) -> None:
    """Convolutions from N(0, 2 / fan_out), He et al. 2015, with biases 0.

    Args:
        model: changed in place. Batch norms already start at scale 1 and shift 0.
        plain_head: linear layers from N(0, 0.01^2) with biases 0, as VGG and MobileNet do; else torch's own.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and plain_head:
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def refuse_all_but_images(name: str, inputs: InputSpec, smallest: int = 1) -> None:
    """Raise unless the inputs are colour images.

    Args:
        name: of the model, for the message.
        inputs: what the data is.
        smallest: the least height and width the model can take.

    Raises:
        InputError: for tables, vectors, other numbers of channels, or smaller images.
    """
    if inputs.kind == "array" and len(inputs.shape) == 3 and inputs.shape[0] == 3 and min(inputs.shape) > 0:
        if min(inputs.shape[1:]) < smallest:
            raise InputError(
                f"model {name!r} takes images of at least {smallest}x{smallest}, not of shape {inputs.shape}"
            )
        return
    given = "a table" if inputs.kind == "table" else f"inputs of shape {inputs.shape}"
    raise InputError(f"model {name!r} takes images of shape (3, H, W), not {given}")


def image_model(name: str, build: Callable[..., nn.Module], smallest: int = 1) -> Callable[..., nn.Module]:
    """The registry entry of a model: a function of what the data gives it.

    Args:
        name: its name in the registry.
        build: makes the module from ``num_classes``.
        smallest: the least height and width of an image.
    """

    def make(*, inputs: InputSpec, num_classes: int) -> nn.Module:
        refuse_all_but_images(name, inputs, smallest)
        return build(num_classes=num_classes)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"A freshly initialised {name}; images of shape (3, H, W) to logits (N, num_classes)."
    return make
