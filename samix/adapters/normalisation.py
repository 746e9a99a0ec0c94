"""Pixels that were normalised before the mixer saw them, and how they come back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from samix.errors import BadBatch, ConfigError

_ROUNDING = 4
"""Steps of the images' dtype by which undoing may leave [0, 1]: a product, a sum, and the rounding of the input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """What a data pipeline did to its pixels, channel by channel: (pixels - mean) / std."""

    mean: tuple[float, ...]
    """Of each of the three channels, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Of each of the three channels; positive."""
    clamp: bool
    """Whether to bring pixels that no picture has into its range, instead of refusing them."""

    @classmethod
    def of(cls, mean: Sequence[float] | None, std: Sequence[float] | None, *, clamp: bool) -> Self | None:
        """Check what a person wrote; None where the images are not normalised.

        Raises:
            ConfigError: unless both or none are given, with three channels, and each std is positive.
        """
        if mean is None and std is None:
            return None
        if mean is None or std is None or len(mean) != 3 or len(std) != 3:
            raise ConfigError(
                f"mean and std must have three channels each, got {mean} and {std}; leave out both or none"
            )
        if not all(value > 0 for value in std):
            raise ConfigError(f"std must be positive, got {tuple(std)}; take the one your pipeline divides by")
        return cls(mean=tuple(mean), std=tuple(std), clamp=clamp)

    def undo(self, images: Tensor) -> Tensor:
        """Bring normalised images [B, 3, H, W], any float type, to float32 in [0, 1].

        Raises:
            BadBatch: if they are no floating-point numbers, or if no picture has such pixels and `clamp` is not set.
        """
        if not images.is_floating_point():
            raise BadBatch(
                f"normalised images are floating point, got {images.dtype}; say that they are not normalised"
            )
        mean, std = self._channels(images)
        pixels = images.float() * std + mean
        if not self.clamp and pixels.numel():
            self._check_range(pixels, _ROUNDING * torch.finfo(images.dtype).eps)
        return pixels.clamp_(0, 1)

    def redo(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise float32 pixels in [0, 1] again, and bring them to `dtype`."""
        mean, std = self._channels(pixels)
        return ((pixels - mean) / std).to(dtype)

    def _channels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], device=images.device).view(2, 3, 1, 1)
        return mean, std

    def _check_range(self, pixels: Tensor, tolerance: float) -> None:
        low, high = torch.stack(pixels.detach().aminmax()).tolist()
        if not -tolerance <= low <= high <= 1 + tolerance:  # False for NaN
            raise BadBatch(
                f"without mean {self.mean} and std {self.std} pixels must lie in [0, 1], got {low:.4g} to {high:.4g}; "
                "give the values your pipeline normalises by, or clamp=True where it writes noise into pictures, as "
                "RandomErasing does"
            )
