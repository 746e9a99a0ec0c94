"""Soft targets: the share of each class in each mixed image, float32 [B, K]."""

import torch
from torch import Tensor

from samix.errors import BadBatch


def soft_targets(labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Write labels as shares of the classes.

    Args:
        labels: integers [B], or shares [B, K] of floating point.
        num_classes: K.
        label_smoothing: share that is spread evenly over all classes, in [0, 1]; timm's default is 0.1.

    Returns:
        float32 [B, K] on the device of the labels; the sum of each row is that of the shares, 1 for integers.

    Raises:
        BadBatch: if the labels have another shape, or name a class that is not there.
    """
    if labels.dim() == 2 and labels.shape[1] == num_classes and labels.is_floating_point():
        shares = labels.float()
    else:
        shares = torch.nn.functional.one_hot(_checked(labels, num_classes), num_classes).float()
    return shares if label_smoothing == 0 else shares * (1 - label_smoothing) + label_smoothing / num_classes


def mixed_targets(targets: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Mix targets [B, K] with those of the partners int64 [B]; lam float32 [B] is the share of the targets."""
    share = lam.to(targets.device)[:, None]
    return torch.lerp(targets[partner.to(targets.device)], targets, share)


def _checked(labels: Tensor, num_classes: int) -> Tensor:
    if labels.dim() != 1 or labels.is_floating_point():
        raise BadBatch(
            f"labels must be integers [batch], or shares [batch, {num_classes}] of floating point, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if len(labels):
        low, high = torch.stack(labels.aminmax()).tolist()
        if low < 0 or high >= num_classes:
            raise BadBatch(
                f"labels must lie in 0..{num_classes - 1}, got {low} to {high}; num_classes is the number of all"
            )
    return labels.long()
