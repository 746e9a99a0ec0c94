"""Rescaling finished masks so that they weigh what their lam says.

Which lam is the caller's business, and the one thing to get right: the public reference rescales the classifier's masks
to the lam of the mixer's own batch (B3).
"""

import torch
from torch import Tensor


def adjust_masks(masks: Tensor, lam: Tensor) -> Tensor:
    """Rescale each mask so that its mean is lam: all pixels down by one factor, or all distances to 1.

    AMix, section 3.2 ("lambda adjusting"). A mask that is too heavy is multiplied by lam / mean; of one that is too
    light, the partner's share 1 - mask is multiplied by (1 - lam) / (1 - mean). A mask of only zeros or only ones has
    nothing to keep and becomes lam everywhere.

    Args:
        masks: float32 [B, 1, H, W] in [0, 1], share of image i.
        lam: float32 [B] in [0, 1], on the device of the masks.

    Returns:
        float32 [B, 1, H, W] in [0, 1]; the order of its pixels is that of `masks`.
    """
    means = masks.mean(dim=(1, 2, 3), keepdim=True)
    missing = lam.view(-1, 1, 1, 1) - means
    room = torch.where(missing < 0, masks, 1 - masks)
    # Where a mask has no room nothing is missing either, and 0 / tiny is 0 as it should be, not NaN.
    scale = missing / room.mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
    return (masks + scale * room).clamp(0, 1)
