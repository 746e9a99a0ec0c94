"""From mask logits to mixed pixels: the part of a mix that the server and every client compute alike.

The mixer answers logits at feature resolution (14 x 14 for 224 px). Upsampling comes before the sigmoid, to the size of
the image rather than by a factor, so that sides need not be multiples of the stride.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float

Upsampling = Literal["nearest", "bilinear"]

LOGIT_LIMIT = 30.0
"""Logits are clamped to +-30: sigmoid(30) is 1 in float32, and infinite ones would become NaN when interpolated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How the logits of one mixer become masks."""

    upsampling: Upsampling
    """`bilinear` for SAMix (corners not aligned), `nearest` for AutoMix."""
    lam_margin: float
    """Pairs with lam or 1 - lam up to this share get the constant mask lam (plain Mixup).

    0 keeps all masks learned, also those of lam = 0 and 1.
    """


def render_masks(logits: Tensor, lam: Tensor, size: tuple[int, int], rendering: Rendering) -> Tensor:
    """Turn logits into masks.

    Args:
        logits: [B, 1, h, w] of image i's share, any float type.
        lam: float32 [B] on the device of the logits.
        size: height and width of the images.
        rendering: the mixer's settings.

    Returns:
        float32 [B, 1, H, W] in [0, 1], the share of image i.
    """
    return keep_plain(upsample_masks(logits, size, rendering.upsampling), lam, rendering.lam_margin)


def upsample_masks(logits: Tensor, size: tuple[int, int], upsampling: Upsampling) -> Tensor:
    """Turn logits [B, 1, h, w] into masks float32 [B, 1, H, W], whatever their lam."""
    if upsampling == "bilinear":
        upsampled = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    else:
        upsampled = F.interpolate(logits.float(), size, mode="nearest")
    return upsampled.sigmoid_()


def keep_plain(masks: Tensor, lam: Tensor, margin: float) -> Tensor:
    """Give pairs with lam or 1 - lam up to `margin` the constant mask lam; 0 leaves all masks as they are."""
    if margin == 0:
        return masks
    share = lam.view(-1, 1, 1, 1)
    plain = torch.minimum(share, 1 - share) <= margin
    return torch.where(plain, share, masks)


def blend(images: Tensor, partner: Tensor, masks: Tensor) -> Tensor:
    """Mix a batch with its partners pixel by pixel: masks * x + (1 - masks) * x[partner]. AutoMix, arXiv:2103.13027.

    Args:
        images: float32 [B, C, H, W].
        partner: int64 [B] on the device of the images.
        masks: float32 [B, 1, H, W] in [0, 1].
    """
    return torch.lerp(images[partner], images, masks)


def compose(
    images: Tensor,
    labels: Tensor | None,
    plan: MixPlan,
    logits: Tensor,
    rendering: Rendering,
    mixed: Tensor | None = None,
) -> MixedBatch:
    """Finish a mix on the device of the images: render the masks, blend the exact pixels, pair the labels.

    Args:
        images: uint8, or float in [0, 1], [B, 3, H, W].
        labels: int64 [B], or None.
        plan: what the logits were predicted for.
        logits: [B, 1, h, w] of image i's share.
        rendering: the mixer's settings.
        mixed: float32 [B, 3, H, W] in [0, 1], the images where they were blended elsewhere; None blends them here.
    """
    plan = plan.to(images.device)
    size = (images.shape[2], images.shape[3])
    masks = render_masks(logits.to(images.device), plan.lam, size, rendering)
    return mixed_batch(images, labels, plan, masks, mixed)


def mixed_batch(
    images: Tensor, labels: Tensor | None, plan: MixPlan, masks: Tensor, mixed: Tensor | None = None
) -> MixedBatch:
    """Blend with known masks float32 [B, 1, H, W], unless that was done, and pair the labels; all on one device."""
    return MixedBatch(
        images=blend(as_unit_float(images), plan.partner, masks) if mixed is None else mixed,
        labels_a=labels,
        labels_b=None if labels is None else labels[plan.partner.to(labels.device)],
        lam=plan.lam,
        masks=masks,
    )
