"""Pixels to another size, antialiased.

Whole pictures go through torch's 8-bit kernels, three times as fast as Pillow's on a processor with AVX2; boxes that
end between pixels need Pillow. Where both can, they differ by one step of 255 in few pixels, and at the border, since
Pillow looks beyond the box.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from services.shards.decode import ExactBox

Interpolation = Literal["bilinear", "bicubic"]

PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(pixels: np.ndarray, box: ExactBox, size: int, interpolation: Interpolation) -> np.ndarray:
    """Resize a box of a picture to a square: what torchvision's crop and resize do, where the box is all of it.

    Args:
        pixels: uint8 [h, w, 3], writable.
        box: lies within the picture.
        size: side of the output, pixels.
        interpolation: between pixels; both filters are widened where the picture shrinks.

    Returns:
        uint8 [size, size, 3].
    """
    if box != (0, 0, pixels.shape[1], pixels.shape[0]):
        return resize_box(pixels, box, size, interpolation)
    # The batch dimension comes before the permutation: else torch takes a crop's strides for those of planes, repacks
    # it, and needs 1.6 times as long.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(image, (size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def resize_box(pixels: np.ndarray, box: ExactBox, size: int, interpolation: Interpolation) -> np.ndarray:
    """Do the same by Pillow, which reads a little beyond the box for the pixels at its border."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), PILLOW_FILTERS[interpolation], box))
