"""From stored bytes to an RGB picture, by Pillow.

Greyscale, palette and CMYK become RGB, alpha is dropped, and EXIF orientation is ignored: what torchvision's
ImageFolder does, hence what published accuracies mean.
"""

import io

from PIL import Image, UnidentifiedImageError

from samix.errors import ShardError
from services.shards.reader import Sample

MAX_PIXELS = 64 * 1024 * 1024
"""Larger pictures are refused before they are decoded: a file of 100 kB can unpack to gigabytes."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_DAMAGE = (OSError, SyntaxError, ValueError)  # all that Pillow raised for 28,000 files damaged at random


class Picture:
    """An opened image file: its size is known, its pixels are decoded by `load`."""

    def __init__(self, image: Image.Image, origin: Sample) -> None:
        self._image = image
        self._origin = origin

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self._image.size

    def load(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode to RGB.

        Args:
            at_least: width and height that suffice; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size.

        Raises:
            ShardError: if the bytes are damaged.
        """
        try:
            if at_least is not None:
                self._image.draft(None, at_least)
            return _to_rgb(self._image)
        except _DAMAGE as err:
            raise _undecodable(self._origin, err) from err


def open_picture(sample: Sample) -> Picture:
    """Read the header of an image.

    Raises:
        ShardError: if it is no JPEG, PNG or WebP, is over MAX_PIXELS, or has more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(sample.image), formats=_FORMATS)
    except UnidentifiedImageError as err:
        raise ShardError(f"{sample} is no JPEG, PNG or WebP image; write the shard again") from err
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise _undecodable(sample, err) from err
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ShardError(f"{sample} is {width} x {height} pixels, over {MAX_PIXELS}; shrink it before sharding")
    if image.mode.startswith(("I", "F")):
        raise ShardError(f"{sample} has pixels of mode {image.mode}; convert it to 8 bits per channel")
    return Picture(image, sample)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if "transparency" in image.info:  # converting a palette straight to RGB warns about its alpha
        image = image.convert("RGBA")
    return image.convert("RGB")


def _undecodable(sample: Sample, err: BaseException) -> ShardError:
    return ShardError(f"{sample} cannot be decoded ({err}); replace the image or leave it out")
