"""One image file as RGB, 8 bits per channel, whatever it was saved as."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.limits import Limits, too_large

BACKGROUND = (255, 255, 255)  # behind transparent pixels, as browsers show them
DEEPEST = 65535


class UnreadableImageError(InputError):
    """An image file cannot be decoded.

    A ``DataLoader`` raises an error of a worker process again with the whole traceback as its message; only the last line, the
    original message, is kept.
    """

    def __init__(self, message: str) -> None:
        last = message.rstrip().rpartition("\n")[2]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


def read_rgb(path: str | Path) -> Image.Image:
    """Decode an image file.

    The orientation in its EXIF data is applied. Grey images of 16 bits are scaled to 8 (65,535 becomes 255), transparent
    pixels are put on white, palettes, CMYK and the like are converted; of an animation, the first frame is taken.

    Raises:
        UnreadableImageError: for a file that is damaged or no image, and for pixels whose range is unknown (floating point, or
            32-bit integers beyond 16 bits).
    """
    try:
        with Image.open(path) as opened:
            limit, (width, height) = Limits.current().megapixels, opened.size
            if width * height > limit * 1_000_000:
                raise too_large("the image", f"has {width} x {height} pixels", f"{limit} megapixels", "megapixels")
            return as_rgb(ImageOps.exif_transpose(opened))
    except InputError as error:
        raise UnreadableImageError(f"{path}: {error}") from None
    except Exception as error:  # decoders can raise any exception on a damaged file
        raise UnreadableImageError(f"{path} cannot be decoded as an image: {one_line(error)}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode of Pillow in mode RGB."""
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image))
    if image.mode == "F":
        raise InputError("its pixels are floating-point numbers, whose range is unknown: save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        below = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return image.convert("RGB")


def _from_integers(pixels: np.ndarray) -> Image.Image:
    """Grey pixels of 16 bits, which Pillow's own conversion would clip at 255."""
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest < 0 or highest > DEEPEST:
        raise InputError(f"its pixels are integers from {lowest} to {highest}: save it with 8 or 16 bits")
    return Image.fromarray(np.round(pixels / (DEEPEST / 255)).astype(np.uint8)).convert("RGB")
