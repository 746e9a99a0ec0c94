"""CutMix, and the arithmetic of boxes that it shares with SaliencyMix.

A box is clipped at the edge rather than moved inside, as published: at lam = 0 it covers the image only if it happens
to be centred. The lam of the mix is therefore what really stayed, at least the one that was asked for.
"""

import torch
from torch import Tensor

from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, blended, distinct_lam, needed


def cutmix(alpha: float = 1.0) -> HandCraftedMixer:
    """Paste a box of the partner and set lam to the share that stayed (Yun et al., arXiv:1905.04899).

    alpha is 1 on ImageNet; 0.2 did best on CIFAR in the published comparison. Always needs a seed: it draws its box.
    """
    return HandCraftedMixer(compose=_compose, alpha=alpha)


def box_masks(lam: Tensor, centre_rows: Tensor, centre_columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each mask: sqrt(1 - lam) of either side, around a centre, clipped at the edge.

    Args:
        lam: float32 [n], the share that stays where nothing is clipped.
        centre_rows: float32 [n], in pixels, 0 at the upper edge.
        centre_columns: float32 [n], in pixels, 0 at the left edge.
        size: height and width of the images.

    Returns:
        float32 [n, 1, H, W], 0 inside the box.
    """
    rows = _covered(lam, centre_rows, size[0]).view(-1, 1, size[0], 1)
    columns = _covered(lam, centre_columns, size[1]).view(-1, 1, 1, size[1])
    return 1 - rows * columns


def _compose(images: Tensor, labels: Tensor | None, plan: MixPlan, generator: torch.Generator | None) -> MixedBatch:
    generator = needed(generator, "CutMix draws where its box lies")
    height, width = images.shape[2:]
    lam = distinct_lam(plan.lam)
    centre_rows = torch.rand(len(lam), generator=generator) * height
    centre_columns = torch.rand(len(lam), generator=generator) * width
    return blended(images, labels, plan, box_masks(lam, centre_rows, centre_columns, (height, width)))


def _covered(lam: Tensor, centre: Tensor, length: int) -> Tensor:
    # The cells of one axis that the boxes cover, float32 [n, length].
    half = ((1 - lam).sqrt() * length).floor() / 2
    start, stop = (centre - half).floor(), (centre + half).floor()
    cells = torch.arange(length, device=lam.device)
    return ((cells >= start[:, None]) & (cells < stop[:, None])).float()
