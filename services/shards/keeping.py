"""Pictures that are decoded once and seen many times: what is kept of one, and how a view is taken of that.

Centred and padded crops begin with a square of the output's size, so their views are the same, bit for bit, whether it
is kept or not. Resized crops are taken of the whole picture, which is kept as a square a little larger than the output,
whatever its shape: the same boxes at a coarser resolution.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from services.shards.augment import CentreCrop, ChangedCrop, PaddedCrop, ResizedCrop, Transform
from services.shards.decode import Box, Picture
from services.shards.resample import Interpolation, resize

_WHOLE_OVER_CROP = 8 / 7
"""Side of a whole picture that is kept, over that of its crops: 256 for 224 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WholePicture:
    """All of a picture, resized to a square without regard to its shape. Draws nothing."""

    size: int
    """Side of the output, pixels."""
    interpolation: Interpolation = "bilinear"
    """How it is resized, with antialiasing."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002 - a transform's shape
        """Return uint8 [size, size, 3]."""
        width, height = picture.size
        return resize(*picture.crop((0, 0, width, height), at_least=self.size), self.size, self.interpolation)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptView:
    """A transform in two steps. K is the side of what is kept, S that of the view."""

    kept: CentreCrop | WholePicture
    """Makes what is kept; draws nothing."""
    crop: PaddedCrop | ResizedCrop | None
    """What is drawn anew for each view; None where what is kept is the view."""

    def view(self, picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Take a view, with the draws that the whole transform would make.

        Args:
            picture: uint8 [3, K, K], as kept.
            size: width and height of the picture it was made of.
            rng: of `view_generator`.

        Returns:
            uint8 [3, S, S].
        """
        if self.crop is None:
            return picture
        if isinstance(self.crop, PaddedCrop):
            rows, columns = self.crop.draw_window(rng)
            return picture.take(rows, axis=1).take(columns, axis=2)
        return _resized(self.crop, picture, size, rng)


def kept_view(transform: Transform) -> KeptView:
    """Split a transform into what is kept and what is drawn.

    Raises:
        TypeError: for one that changes colours too, of which nothing is kept here.
    """
    match transform:
        case CentreCrop():
            return KeptView(kept=transform, crop=None)
        case PaddedCrop(size=size, interpolation=interpolation):
            return KeptView(kept=CentreCrop(size=size, resize=size, interpolation=interpolation), crop=transform)
        case ResizedCrop(size=size, interpolation=interpolation):
            side = round(_WHOLE_OVER_CROP * size)
            return KeptView(kept=WholePicture(size=side, interpolation=interpolation), crop=transform)
        case ChangedCrop():
            raise TypeError(f"pictures are not kept for {transform}")


def _resized(crop: ResizedCrop, picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    left, top, right, bottom = _scaled(crop.draw_box(*size, rng), size, picture.shape[-1])
    boxed = torch.from_numpy(picture[None, :, top:bottom, left:right])
    view = F.interpolate(boxed, (crop.size, crop.size), mode=crop.interpolation, antialias=True)[0].numpy()
    return view[..., ::-1] if crop.draw_flip(rng) else view


def _scaled(box: Box, size: tuple[int, int], side: int) -> Box:
    """Find a box of a picture in the square made of it; it keeps at least one pixel."""
    left, right = (round(edge * side / size[0]) for edge in box[::2])
    top, bottom = (round(edge * side / size[1]) for edge in box[1::2])
    left, top = min(left, side - 1), min(top, side - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)
