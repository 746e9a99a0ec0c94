"""Changes to a view's colours and pixels, as timm and torchvision make them, drawn from a generator.

They run on 8-bit pixels before normalisation, so what timm does to normalised pixels is done in those units here.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance

from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Change(Protocol):
    """Turns uint8 [S, S, 3] into uint8 [S, S, 3]; draws from `rng` and nothing else, and leaves its input alone."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed pixels."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourJitter:
    """Brightness, contrast and saturation, in random order (torchvision's ColorJitter without hue)."""

    strength: float
    """Each is multiplied by a factor between 1 - strength, at least 0, and 1 + strength."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed pixels."""
        image = Image.fromarray(pixels)
        for number in rng.permutation(len(_ENHANCERS)):
            factor = rng.uniform(max(0.0, 1 - self.strength), 1 + self.strength)
            image = _ENHANCERS[number](image).enhance(factor)
        return np.asarray(image)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomErasing:
    """A rectangle replaced by noise, arXiv:1708.04896, in timm's mode `pixel` with its sizes."""

    probability: float
    """Share of the views that lose a rectangle."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the view."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Lowest and highest shape, height over width."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed pixels."""
        if rng.random() >= self.probability:
            return pixels
        size = len(pixels)
        for _ in range(10):
            area = size * size * rng.uniform(*self.area)
            shape = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if height < size and width < size:
                top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
                return _with_noise(pixels, slice(top, top + height), slice(left, left + width), rng)
        return pixels


def _with_noise(pixels: np.ndarray, rows: slice, columns: slice, rng: np.random.Generator) -> np.ndarray:
    """Put normal noise of ImageNet's mean and spread there: standard normal once the pixels are normalised."""
    erased = pixels.copy()
    noise = rng.standard_normal(erased[rows, columns].shape) * IMAGENET_STD + IMAGENET_MEAN
    erased[rows, columns] = (255 * noise).round().clip(0, 255)
    return erased
