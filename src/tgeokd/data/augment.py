"""Augmentation of whole batches of small images: shifted crops, mirroring, normalising. No Python per image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tgeokd.data.tables.counter import below, random_bits

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
    scale, shift = _scale_and_shift(mean, std, images.shape[-2] * images.shape[-1], images.device)
    values = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(len(images), -1)
    values = torch.addcmul(shift, values, scale, out=values)  # rows as long as an image: far faster than by channel
    return values.view(images.shape).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What every value of an image, channel by channel, is multiplied by and what is added, each of shape (C * pixels,)."""
    m, s = (torch.tensor(values, dtype=torch.float64).repeat_interleave(pixels) for values in (mean, std))
    return (1 / (255 * s)).float().to(device), (-m / s).float().to(device)


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
    device = images.device
    tall, wide = height + 2 * padding, width + 2 * padding
    framed = F.pad(images, (padding,) * 4)
    pixels = torch.cat([framed, framed.flip(3)]).view(-1)
    # A row of a cut is a run of pixels that starts anywhere in memory; copying runs is much faster than picking pixels.
    runs = pixels.as_strided((len(pixels) - width + 1, width), (1, 1))
    image = torch.arange(n, device=device) + n * flip
    first = image * (channels * tall * wide) + top * wide + torch.where(flip, 2 * padding - left, left)
    starts = first[:, None, None] + _row_starts(channels, height, tall, wide, device)
    return runs.index_select(0, starts.view(-1)).view_as(images)


@lru_cache(maxsize=16)
def _row_starts(channels: int, height: int, tall: int, wide: int, device: torch.device) -> Tensor:
    """Where the rows of an image start in a padded one, shape (C, H)."""
    return (torch.arange(channels)[:, None] * (tall * wide) + torch.arange(height) * wide).to(device)


@dataclass(frozen=True)
class TrainTransform:
    """A random crop (one shift an image, uniform) and a random mirroring (half of the images), then normalising.

    Called, it draws from torch's global generator, so a resumed run goes on as it would have; :meth:`view` draws from the
    images' ids. Either way the numbers are the same on every device.

    Attributes:
        mean: of each channel, of values in [0, 1].
        std: of each channel, likewise.
        padding: the largest shift, in pixels; what comes in from outside is black.
        flip: whether to mirror.
        seed: of the views.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool = True
    seed: int = 0
    random: ClassVar[bool] = True

    def __call__(self, images: Tensor) -> Tensor:
        """A uint8 batch of shape (N, C, H, W) as float32."""
        n = len(images)
        top, left = torch.randint(2 * self.padding + 1, (2, n))
        flip = torch.rand(n) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return self._apply(images, top, left, flip)

    def view(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        """Likewise, with the crop and the mirroring that the seed, an image's id and the number of the view decide.

        Args:
            images: uint8, shape (N, C, H, W).
            ids: int64, shape (N,).
            view: which of the images' augmented versions.
        """
        bits = random_bits(ids, self.seed, view)
        top, left = (below(bits, field, 2 * self.padding + 1) for field in (0, 1))
        flip = below(bits, 2, 2).bool() if self.flip else torch.zeros_like(ids, dtype=torch.bool)
        return self._apply(images, top, left, flip)

    def _apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        top, left, flip = (part.to(images.device, non_blocking=True) for part in drawn)
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
