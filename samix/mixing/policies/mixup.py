"""Mixup, and no mixing as its limit: one constant mask for each image, drawn by nothing but lam."""

import torch
from torch import Tensor

from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, blended


def mixup(alpha: float = 1.0) -> HandCraftedMixer:
    """Mix whole images with a constant mask (Zhang et al., arXiv:1710.09412); alpha is 1 on CIFAR, 0.2 on ImageNet."""
    return HandCraftedMixer(compose=_compose, alpha=alpha)


def no_mixing() -> HandCraftedMixer:
    """Leave every image as it is, in the shape of a mix with lam = 1; needs no seed."""
    return HandCraftedMixer(compose=_compose, alpha=None)


def _compose(images: Tensor, labels: Tensor | None, plan: MixPlan, _generator: torch.Generator | None) -> MixedBatch:
    masks = plan.lam.view(-1, 1, 1, 1).expand(-1, 1, *images.shape[2:])
    return blended(images, labels, plan, masks, lam=plan.lam)
