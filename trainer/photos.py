"""A person's own picture, whatever camera or program wrote it, as upright RGB.

Training reads pictures by `services.shards.decode`, which ignores orientation and drops alpha because published
accuracies mean that; whoever looks at one picture expects what a viewer shows.
"""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from samix.errors import InputError
from services.shards.decode import MAX_PIXELS

_DAMAGE = (OSError, SyntaxError, ValueError, struct.error)


def open_photo(path: Path) -> Image.Image:
    """Read a picture as 8-bit RGB: turned as its EXIF says, what is transparent on white, grey as equal channels.

    Raises:
        InputError: if the file is no picture, is damaged, has too many pixels, or values of unknown range.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, and of sizes, which are bounded here
        try:
            with Image.open(file) as image:
                _check_size(path, *image.size)
                return _to_rgb(ImageOps.exif_transpose(image), path)
        except InputError:
            raise
        except UnidentifiedImageError as error:
            raise InputError(f"{path} is no picture of a known format; convert it to JPEG or PNG") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{path} is over {MAX_PIXELS} pixels; shrink it first") from error
        except _DAMAGE as error:
            raise InputError(f"{path} cannot be decoded ({error}); save it anew as JPEG or PNG") from error


def squares(photos: Sequence[Image.Image], side: int) -> Tensor:
    """Cut out the middle of each picture and resize it: uint8 [B, 3, side, side]."""
    fitted = [np.array(ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)) for photo in photos]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{path} is {width} x {height} pixels, over {MAX_PIXELS}; shrink it first")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_wide(image, path)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or not 0 <= low <= high <= 65535:
        raise InputError(f"{path} has values of {low} to {high}, not 8 or 16 bits; convert it to 8 bits per channel")
    return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
