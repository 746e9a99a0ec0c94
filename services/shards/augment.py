"""What happens to a picture between shard and batch. Each transform draws from the generator it is given, nothing else.

A view is mostly one box of the source picture, resampled straight to the output: crops that are thrown away are never
resized. Bilinear with antialiasing, as torchvision does by default.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from services.shards.decode import Picture

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedCrop:
    """A random crop out of the picture with a reflected border: CIFAR's augmentation."""

    size: int
    """Side of the output, pixels; pictures of another size are resized and centre cropped to it first."""
    padding: int
    """Border on each side, pixels; less than `size`."""
    flip: bool
    """Mirror every second picture."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 [size, size, 3]."""
        pixels = CentreCrop(size=self.size, resize=self.size)(picture, rng)
        top, left = rng.integers(-self.padding, self.padding + 1, 2)
        columns = self._reflected(left)
        if self.flip and rng.random() < 0.5:
            columns = columns[::-1]
        return pixels.take(self._reflected(top), axis=0).take(columns, axis=1)

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

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 [size, size, 3]."""
        box = self.draw_box(*picture.size, rng)
        pixels = np.asarray(_resample(picture, box, self.size, draft=True))
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels

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

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002 - a transform's shape
        """Return uint8 [size, size, 3]."""
        width, height = picture.size
        if width == height == self.size == self.resize:
            return np.asarray(picture.load())
        return np.asarray(_resample(picture, self.box(width, height), self.size, draft=False))

    def box(self, width: int, height: int) -> Box:
        """Find the crop in pixels of the source, rounded where torchvision's Resize and CenterCrop round."""
        shorter = min(width, height)
        new_width, new_height = self.resize * width // shorter, self.resize * height // shorter
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        x_scale, y_scale = width / new_width, height / new_height
        return left * x_scale, top * y_scale, (left + self.size) * x_scale, (top + self.size) * y_scale


Transform = PaddedCrop | ResizedCrop | CentreCrop


def _resample(picture: Picture, box: Box, size: int, *, draft: bool) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = box
    # Enough that the box alone still has `size` pixels a side: large photographs decode several times faster.
    enough = (math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))) if draft else None
    image = picture.load(enough)
    x_scale, y_scale = image.width / width, image.height / height
    scaled = (left * x_scale, top * y_scale, min(right * x_scale, image.width), min(bottom * y_scale, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, scaled)
