"""From stored bytes to RGB pixels: usual JPEGs by libjpeg-turbo (`jpeg.py`), PNG, WebP and unusual JPEGs by Pillow.

The header decides which, never a failure. Greyscale, palette and CMYK become RGB, alpha is dropped, and EXIF
orientation is ignored: what torchvision's ImageFolder does, hence what published accuracies mean.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from samix.errors import ShardError
from services.shards import jpeg
from services.shards.reader import Sample

MAX_PIXELS = 64 * 1024 * 1024
"""Larger pictures are refused before they are decoded: a file of 100 kB can unpack to gigabytes."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the stored picture; right and bottom are the first outside."""

ExactBox = tuple[float, float, float, float]
"""The same with edges that may lie between pixels."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_DAMAGE = (OSError, SyntaxError, ValueError)  # all that Pillow raised for 28,000 files damaged at random


class Picture(Protocol):
    """An opened image file: its size is known, its pixels are decoded on demand."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        ...

    def load(self) -> np.ndarray:
        """Decode all of it: uint8 [H, W, 3], RGB.

        Raises:
            ShardError: if the bytes are damaged.
        """
        ...

    def crop(self, box: Box, *, at_least: int) -> tuple[np.ndarray, ExactBox]:
        """Decode a box of it.

        Args:
            box: lies within the picture and is not empty.
            at_least: pixels a side that suffice; a JPEG may then come at 1/2, 1/4 or 1/8 of its size.

        Returns:
            uint8 [h, w, 3], RGB, and where the box lies in these pixels: all of them, unless it came smaller and the
            box ends between pixels.

        Raises:
            ShardError: if the bytes are damaged.
        """
        ...


def open_picture(sample: Sample) -> Picture:
    """Read the header of an image.

    Raises:
        ShardError: if it is no JPEG, PNG or WebP, is over MAX_PIXELS, or has more than 8 bits per channel.
    """
    frame = jpeg.read_frame(sample.image)
    picture = _OtherPicture(_open_with_pillow(sample), sample) if frame is None else _JpegPicture(frame, sample)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ShardError(f"{sample} is {width} x {height} pixels, over {MAX_PIXELS}; shrink it before sharding")
    return picture


class _JpegPicture:
    """A JPEG whose header `jpeg.read_frame` accepts."""

    def __init__(self, frame: jpeg.Frame, origin: Sample) -> None:
        self._frame = frame
        self._origin = origin

    @property
    def size(self) -> tuple[int, int]:
        return self._frame.width, self._frame.height

    def load(self) -> np.ndarray:
        with _naming_damage(self._origin):
            return jpeg.decode(self._origin.image, self._frame, bottom=self._frame.height)

    def crop(self, box: Box, *, at_least: int) -> tuple[np.ndarray, ExactBox]:
        left, top, right, bottom = box
        factor = jpeg.reduction(right - left, bottom - top, at_least)
        with _naming_damage(self._origin):
            pixels = jpeg.decode(self._origin.image, self._frame, bottom=bottom, factor=factor)
        column, row = left // factor, top // factor
        exact = (left / factor - column, top / factor - row, right / factor - column, bottom / factor - row)
        return pixels[row : row + math.ceil(exact[3]), column : column + math.ceil(exact[2])], exact


class _OtherPicture:
    """Whatever Pillow reads for us; always decoded whole."""

    def __init__(self, image: Image.Image, origin: Sample) -> None:
        self._image = image
        self._origin = origin

    @property
    def size(self) -> tuple[int, int]:
        return self._image.size

    def load(self) -> np.ndarray:
        with _naming_damage(self._origin):
            return np.asarray(_to_rgb(self._image))

    def crop(self, box: Box, *, at_least: int) -> tuple[np.ndarray, ExactBox]:  # noqa: ARG002 - always whole size
        with _naming_damage(self._origin):
            pixels = np.array(_to_rgb(self._image).crop(box))
        return pixels, (0, 0, pixels.shape[1], pixels.shape[0])


def _open_with_pillow(sample: Sample) -> Image.Image:
    try:
        with _naming_damage(sample):
            image = Image.open(io.BytesIO(sample.image), formats=_FORMATS)
    except UnidentifiedImageError as err:
        raise ShardError(f"{sample} is no JPEG, PNG or WebP image; write the shard again") from err
    if image.mode.startswith(("I", "F")):
        raise ShardError(f"{sample} has pixels of mode {image.mode}; convert it to 8 bits per channel")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if "transparency" in image.info:  # converting a palette straight to RGB warns about its alpha
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextmanager
def _naming_damage(sample: Sample) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:  # an OSError too, but of another format rather than damaged
        raise
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ShardError(f"{sample} cannot be decoded ({err}); replace the image or leave it out") from err
