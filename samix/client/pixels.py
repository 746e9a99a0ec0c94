"""The pixels of a batch that travel: on the host, and as small as they may be."""

import torch
import torch.nn.functional as F
from torch import Tensor

from samix.mixing.batch import as_unit_float


def on_host(images: Tensor) -> Tensor:
    """Bring images to what travels: uint8 as it is, any float as float32, in the memory of the CPU."""
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else as_unit_float(images)


def shrink(images: Tensor, longer_side: int | None) -> Tensor:
    """Make smaller copies, each pixel a mean over the area that it covers, and a little beyond.

    Args:
        images: uint8, or float in [0, 1], [B, 3, H, W].
        longer_side: of the copies, in pixels; the other one follows in proportion. Images that are no larger, and all
            for None, are returned as they are.

    Returns:
        [B, 3, h, w] of the same dtype on the same device.
    """
    height, width = images.shape[2:]
    if longer_side is None or max(height, width) <= longer_side:
        return images
    scale = longer_side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    # Torch has no kernel for bytes on a GPU; that of the CPU errs where one column is left (seen in torch 2.12.1).
    if images.dtype == torch.uint8 and not images.is_cuda and size[1] > 1:
        # Five times as fast as a mean over areas alone (`mode="area"`).
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    if images.dtype == torch.uint8:
        return F.interpolate(images.float(), size, mode="bilinear", antialias=True).round_().byte()
    # Weights that add up to a little more than 1 would leave the range.
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True).clamp_(0, 1)
