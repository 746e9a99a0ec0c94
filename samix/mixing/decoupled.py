"""Decoupled Mixup: confidence in both mixed classes, without letting them compete (arXiv:2203.10761).

A softmax has one unit of probability for both classes of a pair, so that a model sure of seeing both is punished.
DM(CE) adds to the mixed cross-entropy a term for each class, whose softmax leaves the other one out; DM(BCE) raises the
targets of sigmoids. Where one class alone is in the picture (equal labels, lam 0 or 1) nothing competes, and both are
the plain losses.

Classes are paired row by row. The public reference pairs by class index of the first row, so that its loss depends on
the order of the batch (B12), and it drops the term at lam = 0.5 (B13).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from samix.errors import BadBatch, ConfigError
from samix.mixing.losses import OverClasses, at_least_float32, bce_of_targets, cross_entropy_rows

Sides = Literal["both", "less", "more"]
"""Which classes of a pair get a decoupled term: both, or the one with the smaller or the larger share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledConfig:
    """Settings of DM(CE); the defaults are the paper's, and the public reference's on ImageNet."""

    eta: float = 0.1
    """Weight of the decoupled terms."""
    sides: Sides = "both"
    """Which classes get one; at lam = 0.5 each of them counts half for `less` and `more`."""
    threshold: float = 1.0
    """t: shares from here on count fully, in (0, 1]."""
    exponent: float = 1.0
    """xi: a share u below the threshold counts (u / t)^xi; 0 counts every share fully."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ConfigError(f"eta must be finite and at least 0, got {self.eta}; use 0 for plain mixed cross-entropy")
        if self.sides not in ("both", "less", "more"):
            raise ConfigError(f"sides must be 'both', 'less' or 'more', got {self.sides!r}")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must lie in (0, 1], got {self.threshold}; use 1 to rescale every share")
        if not 0 <= self.exponent < math.inf:
            raise ConfigError(f"exponent must be finite and at least 0, got {self.exponent}; use 0 for full shares")


PUBLISHED: dict[tuple[str, str], DecoupledConfig] = {
    ("resnet18", "mixup"): DecoupledConfig(eta=0.01, sides="more", exponent=0.5),
    ("resnet18", "cutmix"): DecoupledConfig(eta=0.1, sides="less", exponent=0.5),
    ("resnet18", "manifoldmix"): DecoupledConfig(eta=0.01, sides="more", exponent=0.0),
    ("resnet18", "fmix"): DecoupledConfig(eta=0.01, sides="less", exponent=0.0),
    ("resnet18", "saliencymix"): DecoupledConfig(eta=0.01, sides="less", exponent=0.0),
    ("resnet18", "resizemix"): DecoupledConfig(eta=0.1, sides="less", exponent=0.5),
    ("resnext50", "mixup"): DecoupledConfig(eta=0.01, sides="both", exponent=1.0),
    ("resnext50", "cutmix"): DecoupledConfig(eta=0.1, sides="both", exponent=1.0),
    ("resnext50", "manifoldmix"): DecoupledConfig(eta=0.05, sides="both", exponent=1.0),
    ("resnext50", "fmix"): DecoupledConfig(eta=0.5, sides="both", exponent=0.0),
    ("resnext50", "saliencymix"): DecoupledConfig(eta=0.1, sides="both", exponent=1.0),
    ("resnext50", "resizemix"): DecoupledConfig(eta=0.01, sides="less", exponent=0.0),
}
"""The public reference's settings of DM(CE) on CIFAR-100 by backbone and policy, 800 epochs.

They go with alpha = 0.2 (ManifoldMix: 0.5 with ResNet-18, 2 with ResNeXt-50) and weight decay 1e-4 (CutMix, FMix,
SaliencyMix and ResizeMix with ResNeXt-50: 5e-4).
"""


def decoupled_cross_entropy(
    logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, config: DecoupledConfig
) -> Tensor:
    """DM(CE): mixed cross-entropy + eta * (h(lam) * D_a + h(1 - lam) * D_b), averaged over the batch.

    D_a is the cross-entropy of a with a softmax that leaves b out, D_b the other way round, and h rescales a share by
    threshold and exponent. The order of the rows does not matter, nor which image of a pair comes first.

    Args:
        logits: [B, K].
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        config: eta, h and the sides.
    """
    rows = cross_entropy_rows(logits, labels_a, labels_b, lam)
    of_a = _kept(lam, config.sides) * _decoupled_rows(logits, labels_a, labels_b, lam, config)
    of_b = _kept(1 - lam, config.sides) * _decoupled_rows(logits, labels_b, labels_a, 1 - lam, config)
    return (rows + config.eta * (of_a + of_b)).mean()


def asymmetric_decoupled(
    logits: Tensor, labels: Tensor, pseudo_labels: Tensor, lam: Tensor, trusted: Tensor, config: DecoupledConfig
) -> Tensor:
    """DM(CE) of a labelled image with an unlabelled one: only the labelled class gets its decoupled term.

    The paper's asymmetric strategy. The labelled image has the smaller share, since its class is certain to be right
    however little of it is seen; draw lam and take min(lam, 1 - lam) before mixing.

    Args:
        logits: [B, K].
        labels: int64 [B], of the labelled images.
        pseudo_labels: int64 [B], of their unlabelled partners.
        lam: float32 [B] in [0, 0.5], share of the labelled images.
        trusted: bool [B], from `trusted_pairs`; the others count 0, and still count in the average.
        config: eta and h; `sides` has no effect.

    Raises:
        BadBatch: if a lam is above 0.5.
    """
    if not bool((lam <= 0.5).all()):
        raise BadBatch(f"the labelled share must be at most 0.5, got {lam.max().item()}; mix with min(lam, 1 - lam)")
    rows = cross_entropy_rows(logits, labels, pseudo_labels, lam)
    rows = rows + config.eta * _decoupled_rows(logits, labels, pseudo_labels, lam, config)
    return (rows * trusted).mean()


def trusted_pairs(confidence: Tensor, lam: Tensor, *, cutoff: float = 0.95, mix_cutoff: float = 0.95) -> Tensor:
    """Tell which pseudo-labels are sure enough to be mixed: the more of the unlabelled image is seen, the surer.

    Args:
        confidence: float32 [B], largest probability of each unlabelled image.
        lam: float32 [B], share of the labelled images.
        cutoff: confidence that always suffices, FixMatch's threshold.
        mix_cutoff: confidence that is always needed, at most `cutoff`. Between the two, 1 - lam is needed.

    Returns:
        bool [B].
    """
    return confidence >= (1 - lam).clamp(mix_cutoff, cutoff)


def decoupled_bce(
    logits: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    *,
    threshold: float,
    exponent: float,
    over_classes: OverClasses = "mean",
) -> Tensor:
    """DM(BCE): binary cross-entropy of every class against h(lam) * a + h(1 - lam) * b, averaged over the batch.

    With threshold 1 and exponent 1 it is `mixed_bce`; with exponent 0 both classes count as fully there. No values have
    been published with code, hence no defaults.

    Args:
        logits: [B, K], each through a sigmoid of its own.
        labels_a: int64 [B].
        labels_b: int64 [B].
        lam: float32 [B], share of labels_a.
        threshold: t, as for `DecoupledConfig`.
        exponent: xi, likewise.
        over_classes: how the classes of one image are reduced; the public reference sums.

    Raises:
        ConfigError: if threshold or exponent is out of bounds.
    """
    DecoupledConfig(threshold=threshold, exponent=exponent)  # it refuses what makes no sense here either
    logits = at_least_float32(logits)
    alone = labels_a == labels_b
    of_a, of_b = (
        _rescaled(share, threshold, exponent).masked_fill(alone, 1.0).to(logits.dtype)[:, None]
        for share in (lam, 1 - lam)
    )
    targets = torch.zeros_like(logits).scatter_(1, labels_b[:, None], of_b).scatter_(1, labels_a[:, None], of_a)
    return bce_of_targets(logits, targets, over_classes)


def _decoupled_rows(
    logits: Tensor, labels: Tensor, competitors: Tensor, share: Tensor, config: DecoupledConfig
) -> Tensor:
    """h(share) times the cross-entropy of `labels` without their competitors, [B]; 0 where nothing is mixed."""
    logits = at_least_float32(logits)
    mixed = (labels != competitors) & (share < 1)
    # Removed from mixed rows only: without its own class a row would be infinite, and 0 * inf is NaN.
    removed = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, competitors[:, None], mixed[:, None])
    rows = F.cross_entropy(logits.masked_fill(removed, -math.inf), labels, reduction="none")
    return _rescaled(share, config.threshold, config.exponent) * mixed * rows


def _rescaled(share: Tensor, threshold: float, exponent: float) -> Tensor:
    """h(u) = min(u / t, 1)^xi, and 0 for u = 0 even where 0^0 is 1: that class is not in the picture."""
    seen = 1 - share < 1  # not share > 0: a share of 1e-9 would be lost where the images of the pair are exchanged
    return (share / threshold).clamp(max=1) ** exponent * seen


def _kept(share: Tensor, sides: Sides) -> Tensor:
    """1 where the class with this share gets its term, 0 where it does not, 1/2 where both shares are 1/2."""
    if sides == "both":
        return torch.ones_like(share)
    ahead = share - 0.5 if sides == "more" else 0.5 - share
    return (ahead.sign() + 1) / 2
