"""Augmentation of whole batches of small images: shifted crops, mirroring, normalising. No Python per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EvalTransform", "TrainTransform", "crop_and_flip", "normalised"]


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(images / 255 - mean) / std`` by channel.

    Args:
        images: uint8, shape (N, C, H, W).
        mean: of each of the C channels, of values in [0, 1].
        std: of each channel, likewise.

    Returns:
        float32, shape (N, C, H, W); channels last in memory, in which convolutions are faster on most devices.
    """
    shift = torch.tensor(mean)[:, None, None] * 255
    scale = torch.tensor(std)[:, None, None] * 255
    return images.float().sub_(shift).div_(scale).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Each image cut out, at its old size, of itself in a black frame; then mirrored where asked.

    Args:
        images: shape (N, C, H, W).
        top: first row of the cut in the padded image, int64 in [0, 2 padding], shape (N,).
        left: first column, likewise.
        flip: whether to mirror left and right, bool, shape (N,).
        padding: width of the frame, in pixels.

    Returns:
        The same type and shape as ``images``.
    """
    n, channels, height, width = images.shape
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + left[:, None]
    rows = torch.arange(height) + top[:, None]
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # one gather does both crop and mirror
    places = places.view(n, 1, height * width).expand(n, channels, height * width)
    framed = F.pad(images, (padding,) * 4).view(n, channels, -1)
    return framed.gather(2, places).view_as(images)


@dataclass(frozen=True)
class TrainTransform:
    """A random crop (one shift an image, uniform) and a random mirroring (half of the images), then normalising.

    Everything random is drawn from torch's global generator, so a resumed run goes on as it would have.

    Attributes:
        mean: of each channel, of values in [0, 1].
        std: of each channel, likewise.
        padding: the largest shift, in pixels; what comes in from outside is black.
        flip: whether to mirror.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """A uint8 batch of shape (N, C, H, W) as float32."""
        n = len(images)
        top, left = torch.randint(2 * self.padding + 1, (2, n))
        flip = torch.rand(n) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return normalised(crop_and_flip(images, top, left, flip, self.padding), self.mean, self.std)


@dataclass(frozen=True)
class EvalTransform:
    """Normalising alone.

    Attributes:
        mean: of each channel, of values in [0, 1].
        std: of each channel, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """A uint8 batch of shape (N, C, H, W) as float32."""
        return normalised(images, self.mean, self.std)
