"""What happens to a picture between shard and batch. Each transform draws from the generator it is given, nothing else.

A view is mostly one box of the source picture, resampled straight to the output: crops that are thrown away are never
resized. `changes.py` has what may follow a crop.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.shards.changes import Change
from services.shards.decode import Box, ExactBox, Picture
from services.shards.resample import Interpolation, resize, resize_box

_VIEW_STREAM = 2
"""First word of the seed here; the epoch's order uses another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedCrop:
    """A random crop out of the picture with a reflected border: CIFAR's augmentation."""

    size: int
    """Side of the output, pixels; pictures of another size are resized and centre cropped to it first."""
    padding: int
    """Border on each side, pixels; less than `size`."""
    flip: bool
    """Mirror every second picture."""
    interpolation: Interpolation = "bilinear"
    """Where a picture is resized."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 [size, size, 3]."""
        pixels = CentreCrop(size=self.size, resize=self.size, interpolation=self.interpolation)(picture, rng)
        rows, columns = self.draw_window(rng)
        return pixels.take(rows, axis=0).take(columns, axis=1)

    def draw_window(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw which rows and columns of the square picture make up the view, int64 [size] each."""
        top, left = rng.integers(-self.padding, self.padding + 1, 2)
        columns = self._reflected(left)
        if self.flip and rng.random() < 0.5:
            columns = columns[::-1]
        return self._reflected(top), columns

    def _reflected(self, start: int) -> np.ndarray:
        last = self.size - 1
        return last - np.abs(last - np.abs(np.arange(start, start + self.size)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizedCrop:
    """A crop of random area and shape, resized: ImageNet's augmentation (torchvision's RandomResizedCrop)."""

    size: int
    """Side of the output, pixels."""
    scale: tuple[float, float]
    """Smallest and largest share of the picture's area; (0.08, 1) for ImageNet."""
    flip: bool
    """Mirror every second picture."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest shape, width over height."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized, with antialiasing."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 [size, size, 3]."""
        box = self.draw_box(*picture.size, rng)
        pixels = resize(*picture.crop(box, at_least=self.size), self.size, self.interpolation)
        return pixels[:, ::-1] if self.draw_flip(rng) else pixels

    def draw_flip(self, rng: np.random.Generator) -> bool:
        """Draw whether the crop is mirrored; after its box."""
        return self.flip and rng.random() < 0.5

    def draw_box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draw (left, top, right, bottom) in pixels of the source; the largest centred box after ten misses."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            shape = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(rng.integers(width - crop_width + 1))
                top = int(rng.integers(height - crop_height + 1))
                return left, top, left + crop_width, top + crop_height
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_width, crop_height = min(width, round(height * shape)), min(height, round(width / shape))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreCrop:
    """The shorter side resized, then the middle cropped out: evaluation. Draws nothing."""

    size: int
    """Side of the output, pixels."""
    resize: int
    """Length the shorter side is resized to, pixels; at least `size`."""
    interpolation: Interpolation = "bilinear"
    """How it is resized, with antialiasing."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002 - a transform's shape
        """Return uint8 [size, size, 3]."""
        width, height = picture.size
        if width == height == self.size == self.resize:
            return picture.load()
        return resize_box(picture.load(), self.box(width, height), self.size, self.interpolation)

    def box(self, width: int, height: int) -> ExactBox:
        """Find the crop in pixels of the source, rounded where torchvision's Resize and CenterCrop round."""
        shorter = min(width, height)
        new_width, new_height = self.resize * width // shorter, self.resize * height // shorter
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        x_scale, y_scale = width / new_width, height / new_height
        right, bottom = (left + self.size) * x_scale, (top + self.size) * y_scale
        return left * x_scale, top * y_scale, min(right, width), min(bottom, height)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedCrop:
    """A crop whose pixels are changed further, one change after the other."""

    crop: PaddedCrop | ResizedCrop
    """Makes the view."""
    changes: tuple[Change, ...]
    """What follows, in this order; each draws after the one before."""

    @property
    def size(self) -> int:
        """Side of the output, pixels."""
        return self.crop.size

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 [size, size, 3]."""
        pixels = self.crop(picture, rng)
        for change in self.changes:
            pixels = change(pixels, rng)
        return pixels


Transform = PaddedCrop | ResizedCrop | CentreCrop | ChangedCrop


def view_generator(*, seed: int, epoch: int, position: int) -> np.random.Generator:
    """Make what the view of one sample in one epoch is drawn from.

    Seeded by what the sample is, never by rank or worker: the same for every world size and after a restart.
    """
    return np.random.default_rng((_VIEW_STREAM, seed, epoch, position))
