"""RandAugment, arXiv:1909.13719, as timm implements it and published recipes name it: `rand-m9-mstd0.5-inc1`.

timm draws from Python's and numpy's global generators. They are seeded here for one picture and put back after it, so a
view depends on its own generator only; a thread that draws from them at the same moment would spoil that.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from samix.mixing.presets import IMAGENET_MEAN
from services.shards.resample import PILLOW_FILTERS, Interpolation

_POLICY = re.compile(
    r"rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|0|1)(\.0)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3a|3aw)))*"
)
_LARGEST_SHIFT = 0.45
"""Share of the side that translations move by at full magnitude; timm's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment:
    """Some operations drawn at random, each applied with some probability."""

    policy: str
    """In timm's words: m magnitude, mstd its spread, n operations a view, inc1 operations that grow with magnitude."""
    interpolation: Interpolation
    """Of operations that move pixels."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed pixels."""
        change = _timm_transform(self.policy, len(pixels), self.interpolation)
        with _global_generators(int(rng.integers(2**32))):
            return np.asarray(change(Image.fromarray(pixels)))


def is_policy(text: str) -> bool:
    """Tell whether timm would understand every part of it; timm itself passes over parts that it does not."""
    return _POLICY.fullmatch(text) is not None


@lru_cache(maxsize=8)
def _timm_transform(policy: str, size: int, interpolation: Interpolation) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import posterize, rand_augment_transform  # takes seconds to import

    def posterise(image: Image.Image, bits: int, **settings: object) -> Image.Image:
        # timm keeps no bits at full magnitude: black, as Pillow made it until it began to refuse that (13.0).
        return posterize(image, bits, **settings) if bits > 0 else Image.new(image.mode, image.size)

    settings = {
        "translate_const": int(size * _LARGEST_SHIFT),
        "img_mean": tuple(round(255 * value) for value in IMAGENET_MEAN),
        "interpolation": PILLOW_FILTERS[interpolation],
    }
    transform = rand_augment_transform(policy, settings)
    for operation in transform.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = posterise
    return transform


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators for the block, and put them back where they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
