"""Objectives of the mixer: what its mixes and its masks are judged by. B is the batch, K the number of classes.

The variance of masks is rewarded, hence both mask losses may be negative.
"""

from typing import Literal

import torch
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.losses import at_least_float32, cross_entropy_rows

MaskLossKind = Literal["L1", "L1+Variance", "L2+Variance", "Sparsity"]
"""The public reference's names for what it asks of masks; it trains SAMix with `L1+Variance`, AutoMix with `L1`."""


def eta_balanced_loss(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, eta: float) -> Tensor:
    """What the mixer is trained on: smoothness between the two classes plus eta times discrimination from the others.

    l+ + eta * l-, where l- is the mixed cross-entropy and l+ the same with a softmax over the two classes of the pair
    alone (SAMix, arXiv:2111.15454, section 3.1). A pair of one class has no other class to lie between: l+ is left out.
    The public reference has eta in its settings, but no l+ (B1).

    Args:
        logits: [B, K].
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        eta: 0.5 on small data, 0.1 on ImageNet.
    """
    pair = torch.stack([labels_a, labels_b], dim=1)
    log_share = at_least_float32(logits).gather(1, pair).log_softmax(dim=1)
    local = -(lam * log_share[:, 0] + (1 - lam) * log_share[:, 1])
    local = local.masked_fill(labels_a == labels_b, 0.0)
    return (local + eta * cross_entropy_rows(logits, labels_a, labels_b, lam)).mean()


def mask_loss(masks: Tensor, lam: Tensor, margin: float, *, variance: bool = True) -> Tensor:
    """Pull each mask's mean towards lam and reward its variance: max(|mean - lam| - margin, 0) - var.

    AMix, section 3.2 ("prior knowledge"). Computed for each image, so that two masks cannot make up for each other.

    Args:
        masks: float32 [B, 1, H, W], share of image i.
        lam: float32 [B].
        margin: distance between mean and lam that costs nothing, 0.1.
        variance: reward the variance, as SAMix does; AutoMix does not.
    """
    pixels = masks.flatten(1)
    distance = ((pixels.mean(dim=1) - lam).abs() - margin).clamp_min(0)
    return (distance - pixels.var(dim=1, correction=0) if variance else distance).mean()


def batch_mask_loss(masks: Tensor, lam: Tensor, margin: float, kind: MaskLossKind) -> Tensor:
    """Judge masks as the public reference does: mean and variance over the whole batch (B6), the variance twice (B7).

    With m the mean and var the variance of all pixels of the batch:

        L1            max(|m - lam| - margin, 0)
        L1+Variance   max(|m - lam| - margin, 0) - 2 var
        L2+Variance   max((m - lam)^2 - margin^2, 0) - 2 var
        Sparsity      max(mean(|mask (mask - 1)|) - margin, 0)

    Args:
        masks: float32 [B, 1, H, W], share of image i.
        lam: float32 [B], the same for all, since the reference draws one for the batch; of several, the mean counts.
        margin: what costs nothing, 0.1.
        kind: which of the four.

    Raises:
        ConfigError: if there is no such kind.
    """
    distance = (masks.mean() - lam.mean()).abs()
    if kind == "L1":
        return (distance - margin).clamp_min(0)
    if kind == "L1+Variance":
        return (distance - margin).clamp_min(0) - 2 * masks.var(correction=0)
    if kind == "L2+Variance":
        return (distance**2 - margin**2).clamp_min(0) - 2 * masks.var(correction=0)
    if kind == "Sparsity":
        return ((masks * (masks - 1)).abs().mean() - margin).clamp_min(0)
    raise ConfigError(f"a mask loss is L1, L1+Variance, L2+Variance or Sparsity, got {kind!r}")
