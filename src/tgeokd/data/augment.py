"""Augmentation of whole batches of small images, without Python per image: shifted crops, mirroring, normalisation."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.data.tables.counter import below, random_bits


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(images / 255 - mean) / std`` of uint8 images of shape (N, C, H, W), with a mean and a standard deviation per channel.

    Returns:
        float32, shape (N, C, H, W), in the memory format channels last, in which convolutions are faster on most devices.
    """
    scale, shift = _scale_and_shift(mean, std, images.shape[-2] * images.shape[-1], images.device)
    values = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(len(images), -1)
    values = torch.addcmul(shift, values, scale, out=values)  # one row per image is much faster than one per channel
    return values.view(images.shape).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and summand of every value of an image, channel by channel, each of shape (C * pixels,)."""
    m, s = (torch.tensor(values, dtype=torch.float64).repeat_interleave(pixels) for values in (mean, std))
    return (1 / (255 * s)).float().to(device), (-m / s).float().to(device)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros, crop it to its original size, and mirror it where ``flip`` is true.

    Args:
        images: shape (N, C, H, W); the result has the same type and shape.
        top: first row of the crop in the padded image, int64 in [0, 2 padding], shape (N,).
        left: first column of the crop, int64 in [0, 2 padding], shape (N,).
        flip: whether to mirror left and right, bool, shape (N,).
        padding: pixels added on each side.
    """
    (n, channels, height, width), device = images.shape, images.device
    tall, wide = height + 2 * padding, width + 2 * padding
    framed = F.pad(images, (padding,) * 4)
    pixels = torch.cat([framed, framed.flip(3)]).view(-1)
    # A row of a crop is a contiguous run of pixels; copying runs is much faster than gathering single pixels.
    runs = pixels.as_strided((len(pixels) - width + 1, width), (1, 1))
    image = torch.arange(n, device=device) + n * flip
    first = image * (channels * tall * wide) + top * wide + torch.where(flip, 2 * padding - left, left)
    starts = first[:, None, None] + _row_starts(channels, height, tall, wide, device)
    return runs.index_select(0, starts.view(-1)).view_as(images)


@lru_cache(maxsize=16)
def _row_starts(channels: int, height: int, tall: int, wide: int, device: torch.device) -> Tensor:
    """Offsets of the rows of an image in a padded one, shape (C, H)."""
    return (torch.arange(channels)[:, None] * (tall * wide) + torch.arange(height) * wide).to(device)


@dataclass(frozen=True)
class EvalTransform:
    """Normalisation by the mean and the standard deviation of each channel, of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a uint8 batch of shape (N, C, H, W); returns float32."""
        return normalised(images, self.mean, self.std)


@dataclass(frozen=True)
class TrainTransform(EvalTransform):
    """A random crop (one uniform shift per image) and random mirroring (of half of the images), then normalisation.

    A call draws from PyTorch's global generator, whose state a checkpoint contains; in :meth:`view` the draws are a function
    of the image ids. Both give the same numbers on every device.

    Attributes:
        padding: the largest shift, in pixels; the image is padded with zeros.
        flip: whether to mirror.
        seed: seed of the views.
    """

    padding: int
    flip: bool = True
    seed: int = 0
    random: ClassVar[bool] = True

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a uint8 batch of shape (N, C, H, W); returns float32."""
        n = len(images)
        top, left = torch.randint(2 * self.padding + 1, (2, n))
        flip = torch.rand(n) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return self._apply(images, top, left, flip)

    def view(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        """As a call, with crops and mirroring that are a function of the seed, the image ids (N,) and the view."""
        bits = random_bits(ids, self.seed, view)
        top, left = (below(bits, field, 2 * self.padding + 1) for field in (0, 1))
        flip = below(bits, 2, 2).bool() if self.flip else torch.zeros_like(ids, dtype=torch.bool)
        return self._apply(images, top, left, flip)

    def _apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        top, left, flip = (values.to(images.device, non_blocking=True) for values in drawn)
        return normalised(crop_and_flip(images, top, left, flip, self.padding), self.mean, self.std)
