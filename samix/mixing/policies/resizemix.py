"""ResizeMix: paste the whole partner, made smaller.

Nothing of the partner is cut away, so the mix is no blend of the two images: inside the box, where masks are 0, it
shows a smaller picture of the partner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, batch_of, distinct_lam, needed

_SCOPE = (0.1, 0.8)


def resizemix(alpha: float = 1.0) -> HandCraftedMixer:
    """Paste the partner, resized, and set lam to the share that stayed (Qin et al., arXiv:2012.11101).

    The side of the patch is drawn between 0.1 and 0.8 of the image's, uniformly with alpha = 1 as in the paper, so
    that lam lies in 0.36..0.99. A lam that the caller gives is kept, outside of that range too: 1 is the image itself
    and 0 the whole partner. Always needs a seed: it draws where the patch goes.
    """
    return HandCraftedMixer(compose=_compose, alpha=alpha, lam_of_draw=_lam_of_draw)


def _lam_of_draw(draw: Tensor) -> Tensor:
    side = _SCOPE[0] + (_SCOPE[1] - _SCOPE[0]) * draw
    return 1 - side**2


def _compose(images: Tensor, labels: Tensor | None, plan: MixPlan, generator: torch.Generator | None) -> MixedBatch:
    generator = needed(generator, "ResizeMix draws where its patch goes")
    lam = distinct_lam(plan.lam)
    places = torch.rand(len(lam), 2, generator=generator)
    partners = images[plan.partner.to(images.device)]
    mixed, masks = images.clone(), images.new_ones(len(lam), 1, *images.shape[2:])
    step = len(images) // len(lam)  # images that share a patch: all of them, or one
    for index, (share, place) in enumerate(zip(lam.tolist(), places.tolist(), strict=True)):
        rows, columns = (_extent(*axis, share) for axis in zip(images.shape[2:], place, strict=True))
        group = slice(index * step, (index + 1) * step)
        mixed[group, :, rows, columns] = _resized(partners[group], rows, columns)
        masks[index, :, rows, columns] = 0
    return batch_of(mixed, labels, plan, masks)


def _extent(length: int, place: float, lam: float) -> slice:
    side = round((1 - lam) ** 0.5 * length)
    start = int(place * (length - side + 1))
    return slice(start, start + side)


def _resized(images: Tensor, rows: slice, columns: slice) -> Tensor:
    size = (rows.stop - rows.start, columns.stop - columns.start)
    if 0 in size:  # which interpolate refuses
        return images[:, :, : size[0], : size[1]]
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp_(0, 1)
