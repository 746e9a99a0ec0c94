"""SaliencyMix: CutMix whose box is centred where the partner is most salient.

The public code looks for that place in one image and cuts the same box out of the whole batch; the paper cuts each
patch around the peak of its own source, and so do we.
"""

from functools import partial

import torch
from torch import Tensor

from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, blended
from samix.mixing.policies.cutmix import box_masks
from samix.mixing.policies.saliency import Saliency, fine_grained_saliency, measure


def saliencymix(alpha: float = 1.0, *, saliency: Saliency | None = None) -> HandCraftedMixer:
    """Paste the most salient box of the partner and set lam to the share that stayed (Uddin et al., arXiv:2006.01791).

    Args:
        alpha: 1 in the paper; 0.2 did best on CIFAR in the published comparison.
        saliency: finds the peak; None is the paper's static fine-grained saliency.
    """
    return HandCraftedMixer(compose=partial(_compose, saliency or fine_grained_saliency), alpha=alpha)


def _compose(
    saliency: Saliency,
    images: Tensor,
    labels: Tensor | None,
    plan: MixPlan,
    _generator: torch.Generator | None,
) -> MixedBatch:
    height, width = images.shape[2:]
    peaks = measure(saliency, images, labels).flatten(1).argmax(dim=1)[plan.partner.to(images.device)]
    centre_rows, centre_columns = peaks // width + 0.5, peaks % width + 0.5
    masks = box_masks(plan.lam.to(images.device), centre_rows, centre_columns, (height, width))
    return blended(images, labels, plan, masks)
