"""The data term of Puzzle Mix: how unlike the pixels are that meet where one block borders on another.

Let d(z, z') be the mean difference across a border whose first side shows image i (z = 1) or its partner (z = 0), and
whose second side shows what z' says. Its four values are, up to a constant, a cost of z, one of z', and one of z and z'
being unlike, which is what a graph cut takes.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Seams:
    """What the borders of the blocks add to the energy of a mask, in mean absolute differences of pixels."""

    of_showing: Tensor
    """float32 [B, h, w]: cost of showing image i there rather than its partner, over all borders of the block."""
    below: Tensor
    """float32 [B, h - 1, w] in [-1, 1]: cost of a block being unlike the one below."""
    beside: Tensor
    """float32 [B, h, w - 1] in [-1, 1]: cost of a block being unlike the one to its right."""

    @classmethod
    def between(cls, images: Tensor, partner: Tensor, block: tuple[int, int], depth_px: int) -> "Seams":
        """Measure the borders of all blocks.

        Args:
            images: float32 [B, C, H, W].
            partner: int64 [B] on their device.
            block: height and width in pixels.
            depth_px: depth of the strips on either side that are compared, or the next smaller divisor of a block.
        """
        padding = (0, -images.shape[3] % block[1], 0, -images.shape[2] % block[0])
        padded = F.pad(images, padding, mode="replicate")
        height, width = (max(px for px in range(1, depth_px + 1) if side % px == 0) for side in block)
        pooled = F.avg_pool2d(padded, (height, width))
        per_block = (block[0] // height, block[1] // width)
        upper, lower, below = _across(pooled, partner, *per_block)
        left, right, beside = (part.mT for part in _across(pooled.mT, partner, *per_block[::-1]))
        of_showing = (
            F.pad(upper, (0, 0, 0, 1)) + F.pad(lower, (0, 0, 1, 0)) + F.pad(left, (0, 1)) + F.pad(right, (1, 0))
        )
        return cls(of_showing, below, beside)


def _across(pooled: Tensor, partner: Tensor, deep: int, wide: int) -> tuple[Tensor, Tensor, Tensor]:
    # At the horizontal borders, [B, h - 1, w] each: costs of showing above, of showing below, of being unlike.
    above, under = pooled[:, :, deep - 1 :: deep][:, :, :-1], pooled[:, :, deep::deep]

    def difference(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean(dim=1).unflatten(2, (-1, wide)).mean(dim=3)

    d11, d10 = difference(above, under), difference(above, under[partner])
    d01, d00 = difference(above[partner], under), difference(above[partner], under[partner])
    return (d10 + d11 - d01 - d00) / 2, (d01 + d11 - d10 - d00) / 2, (d10 + d01 - d11 - d00) / 2
