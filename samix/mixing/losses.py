"""Objectives of the classifier for mixed labels. B is the batch, K the number of classes.

Half-precision logits are compared in float32, and float64 stays float64, so that gradients can be checked numerically.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OverClasses = Literal["mean", "sum"]
"""How the K binary losses of one image become one number; the two differ by the factor K."""


def mixed_cross_entropy(
    logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy against lam * a + (1 - lam) * b, averaged over the batch. Mixup, arXiv:1710.09412.

    Args:
        logits: [B, K].
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1]; 0.1 for DeiT.
    """
    rows = cross_entropy_rows(logits, labels_a, labels_b, lam)
    if label_smoothing:  # not 0 * uniform: a class masked by -inf would make it NaN
        uniform = -at_least_float32(logits).log_softmax(dim=1).mean(dim=1)
        rows = (1 - label_smoothing) * rows + label_smoothing * uniform
    return rows.mean()


def mixed_bce(
    logits: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    *,
    label_smoothing: float = 0.0,
    over_classes: OverClasses = "mean",
) -> Tensor:
    """Binary cross-entropy of every class against lam * a + (1 - lam) * b (ResNet strikes back, arXiv:2110.00476).

    Averaged over classes and batch, as timm trained it; "sum" over the classes is what the public reference does. LAMB,
    the optimiser of that recipe, hardly tells them apart, but with SGD the learning rate must follow.

    Args:
        logits: [B, K], each through a sigmoid of its own.
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        over_classes: how the classes of one image are reduced.
    """
    logits = at_least_float32(logits)
    shares = lam.to(logits.dtype)
    targets = torch.zeros_like(logits)
    targets.scatter_add_(1, labels_a[:, None], shares[:, None]).scatter_add_(1, labels_b[:, None], 1 - shares[:, None])
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
    return bce_of_targets(logits, targets, over_classes)


def bce_of_targets(logits: Tensor, targets: Tensor, over_classes: OverClasses) -> Tensor:
    """Binary cross-entropy of logits [B, K] against targets [B, K] in [0, 1], averaged over the batch."""
    classes = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return classes.sum(dim=1).mean() if over_classes == "sum" else classes.mean()


def cross_entropy_rows(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor) -> Tensor:
    """Mixed cross-entropy of each image, [B]; arguments as for `mixed_cross_entropy`."""
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    of_a = F.nll_loss(log_probabilities, labels_a, reduction="none")
    of_b = F.nll_loss(log_probabilities, labels_b, reduction="none")
    return lam * of_a + (1 - lam) * of_b


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half precision to float32; float32 and float64 pass through uncopied."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
