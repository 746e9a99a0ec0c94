"""Whether a mixer's masks are worth anything: do their means follow lam, and do they vary over the image?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for
from samix.mixing.render import Rendering, render_masks


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskQuality:
    """How the masks of one mixer look at some values of lam, before the lambda margin."""

    lam: Sequence[float]
    """The values."""
    mean: Sequence[float]
    """Mean of the masks at each; lam itself would be perfect."""
    spread: Sequence[float]
    """Mean spatial standard deviation at each; near 0 the mixer is Mixup."""
    error: Sequence[float]
    """Mean over the masks of |mean(mask) - lam| at each."""

    @property
    def mean_error(self) -> float:
        """Average error over the values of lam."""
        return sum(self.error) / len(self.error)

    @property
    def mean_spread(self) -> float:
        """Average spread over the values of lam."""
        return sum(self.spread) / len(self.spread)


LAMS = tuple(i / 10 for i in range(1, 10))
"""Where masks are looked at."""


def mask_quality(mixer: FrozenMixer, images: Tensor, *, seed: int, lams: Sequence[float] = LAMS) -> MaskQuality:
    """Mix images with partners drawn from `seed`, at each lam.

    Args:
        mixer: whose masks are looked at.
        images: uint8 or float [B, 3, H, W].
        seed: draws the partners.
        lams: values in [0, 1].
    """
    partner = torch.randperm(len(images), generator=generator_for(seed))
    learned = Rendering(upsampling=mixer.spec.rendering.upsampling, lam_margin=-1.0)
    rows = []
    for lam in lams:
        plan = MixPlan(lam=torch.full((len(images),), lam), partner=partner)
        logits = mixer.mask_logits(images, plan).clone()
        size = (images.shape[2], images.shape[3])
        pixels = render_masks(logits, plan.lam.to(logits.device), size, learned).flatten(1)
        means = pixels.mean(dim=1)
        rows.append((means.mean().item(), pixels.std(dim=1).mean().item(), (means - lam).abs().mean().item()))
    mean, spread, error = zip(*rows, strict=True)
    return MaskQuality(lam=tuple(lams), mean=mean, spread=spread, error=error)
