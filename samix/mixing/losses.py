"""Objectives for mixed labels and for masks. B is the batch, K the number of classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_cross_entropy(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor) -> Tensor:
    """Cross-entropy against lam * a + (1 - lam) * b, averaged over the batch.

    Args:
        logits: [B, K].
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
    """
    return _mixed_cross_entropy(logits, labels_a, labels_b, lam).mean()


def eta_balanced_loss(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, eta: float) -> Tensor:
    """What the mixer is trained on: smoothness between the two classes plus eta times discrimination from the others.

    l+ + eta * l-, where l- is the mixed cross-entropy and l+ the same with a softmax over the two classes of the pair
    alone (SAMix, arXiv:2111.15454, section 3.1). A pair of one class has no other class to lie between: l+ is left out.

    Args:
        logits: [B, K].
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        eta: 0.5 on small data, 0.1 on ImageNet.
    """
    pair = torch.stack([labels_a, labels_b], dim=1)
    log_share = logits.float().gather(1, pair).log_softmax(dim=1)
    local = -(lam * log_share[:, 0] + (1 - lam) * log_share[:, 1])
    local = local.masked_fill(labels_a == labels_b, 0.0)
    return (local + eta * _mixed_cross_entropy(logits, labels_a, labels_b, lam)).mean()


def mask_loss(masks: Tensor, lam: Tensor, margin: float) -> Tensor:
    """Pull each mask's mean towards lam and reward its variance: max(|mean - lam| - margin, 0) - var.

    AMix, section 4 ("prior knowledge"). Computed for each image, so that two masks cannot make up for each other; the
    variance is subtracted, hence the loss may be negative.

    Args:
        masks: [B, 1, H, W], share of image i.
        lam: float32 [B].
        margin: distance between mean and lam that costs nothing, 0.1.
    """
    pixels = masks.flatten(1)
    distance = ((pixels.mean(dim=1) - lam).abs() - margin).clamp_min(0)
    return (distance - pixels.var(dim=1, correction=0)).mean()


def _mixed_cross_entropy(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor) -> Tensor:
    log_probabilities = logits.float().log_softmax(dim=1)
    of_a = F.nll_loss(log_probabilities, labels_a, reduction="none")
    of_b = F.nll_loss(log_probabilities, labels_b, reduction="none")
    return lam * of_a + (1 - lam) * of_b
