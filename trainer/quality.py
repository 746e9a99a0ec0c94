"""Whether a mixer's masks are worth anything: do their means follow lam, and do they vary over the picture?

A mixer that learnt nothing scores well on the first question alone: a constant mask of lam is Mixup.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression

import numpy as np
import torch
from torch import Tensor

from samix.client.remote import RemoteMixer
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for, resolve_plan
from samix.mixing.protocol import Mixer
from samix.mixing.render import Rendering, render_masks
from trainer.pairs import mix_pairs

LAMS = tuple(i / 10 for i in range(1, 10))
"""Where masks are looked at."""
TRIVIAL_SPREAD = 0.02
"""Masks of a smaller spatial standard deviation are constant blends, whatever their mean."""
IGNORANT_SLOPE = 0.25
"""Where the mean of the masks rises less than this for each unit of lam, they ignore it; CutMix has about 0.55."""

_CHUNK = 32  # images that go through a network at once
_SERVED_CHUNK = 8  # and through a server, each with its partner: 50 MB at 1024 px


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskQuality:
    """How the masks of one mixer look at some values of lam; of a learned one before the lambda margin."""

    lam: Sequence[float]
    """The values."""
    mean: Sequence[float]
    """Mean of the masks at each; lam itself would be perfect."""
    mean_deviation: Sequence[float]
    """Standard deviation between images of the mean of a mask, at each."""
    spread: Sequence[float]
    """Mean spatial standard deviation at each; near 0 the mixer is Mixup, at most 0.5."""
    spread_deviation: Sequence[float]
    """Standard deviation between images of the spatial standard deviation, at each."""
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

    @property
    def is_trivial(self) -> bool:
        """Whether the masks hardly vary over a picture."""
        return self.mean_spread < TRIVIAL_SPREAD

    @property
    def ignores_lam(self) -> bool:
        """Whether the means of the masks hardly change with lam, of which there must be two values or more."""
        return linear_regression(self.lam, self.mean).slope < IGNORANT_SLOPE


def mask_quality(mixer: Mixer, images: Tensor, *, seed: int, lams: Sequence[float] = LAMS) -> MaskQuality:
    """Mix images with partners drawn from `seed`, at each lam.

    Args:
        mixer: whose masks are looked at: a learned mixer, or a policy.
        images: uint8, or float in [0, 1], [B, 3, H, W].
        seed: draws the partners, and whatever else a policy draws.
        lams: values in [0, 1].
    """
    partner = torch.randperm(len(images), generator=generator_for(seed))
    rows = []
    for lam, masks in zip(lams, masks_over(mixer, images, partner, lams, seed=seed), strict=True):
        pixels = masks.flatten(1)
        means, spreads = pixels.mean(dim=1), pixels.std(dim=1)
        deviations = means.std(correction=0), spreads.std(correction=0)  # 0 for one image, not NaN
        figures = (means.mean(), deviations[0], spreads.mean(), deviations[1], (means - lam).abs().mean())
        rows.append([figure.item() for figure in figures])
    mean, mean_deviation, spread, spread_deviation, error = zip(*rows, strict=True)
    return MaskQuality(
        lam=tuple(lams),
        mean=mean,
        mean_deviation=mean_deviation,
        spread=spread,
        spread_deviation=spread_deviation,
        error=error,
    )


def masks_over(mixer: Mixer, images: Tensor, partner: Tensor, lams: Sequence[float], *, seed: int) -> Iterator[Tensor]:
    """Make the masks of the same pairs at each lam; of a learned mixer those before its lambda margin.

    Args:
        mixer: a learned mixer, or a policy.
        images: uint8, or float in [0, 1], [B, 3, H, W].
        partner: int64 [B], a permutation.
        lams: values in [0, 1].
        seed: what else a policy draws.

    Yields:
        float32 [B, 1, H, W] for each lam, the share of image i.
    """
    if isinstance(mixer, FrozenMixer):
        yield from _learned_masks(mixer, images, partner, lams)
    elif isinstance(mixer, RemoteMixer):
        chunks = torch.arange(len(images)).split(_SERVED_CHUNK)
        for lam in lams:
            yield torch.cat([_served_masks(mixer, images, rows, partner[rows], lam) for rows in chunks])
    else:
        for lam in lams:
            yield mix_pairs(mixer, images, images[partner.to(images.device)], lam, seed=seed).masks


def _learned_masks(mixer: FrozenMixer, images: Tensor, partner: Tensor, lams: Sequence[float]) -> Iterator[Tensor]:
    mixer.spec.check_size(*images.shape[-2:])
    features = encode(mixer, images)  # once: lam enters in the block
    rendering = Rendering(upsampling=mixer.spec.rendering.upsampling, lam_margin=0.0)
    for lam in lams:
        logits = [
            _logits(mixer, features, rows, partner[rows], lam) for rows in torch.arange(len(images)).split(_CHUNK)
        ]
        yield render_masks(torch.cat(logits), torch.empty(0), (images.shape[2], images.shape[3]), rendering)


def _served_masks(mixer: RemoteMixer, images: Tensor, rows: Tensor, partners: Tensor, lam: float) -> Tensor:
    count = len(rows)
    both = images[torch.cat([rows, partners]).to(images.device)]
    plan = resolve_plan(2 * count, lam=lam, partner=torch.arange(2 * count).roll(-count), generator=None)
    reply = mixer.submit(both, plan=plan).reply()
    logits = torch.from_numpy(reply.mask_logits[:count].astype(np.float32))
    rendering = replace(reply.rendering, lam_margin=0.0)
    return render_masks(logits, torch.empty(0), (images.shape[2], images.shape[3]), rendering)


@torch.no_grad()
def encode(mixer: FrozenMixer, images: Tensor) -> Tensor:
    """Compute the features [B, C, h, w] that a learned mixer works on, on its device.

    Args:
        mixer: whose encoder.
        images: uint8, or float in [0, 1], [B, 3, H, W].
    """
    chunks = (as_unit_float(chunk.to(mixer.device)) for chunk in images.split(_CHUNK))
    return torch.cat([mixer.net.encoder(mixer.net.normalise(chunk)) for chunk in chunks])


@torch.no_grad()
def _logits(mixer: FrozenMixer, features: Tensor, rows: Tensor, partners: Tensor, lam: float) -> Tensor:
    count = len(rows)
    both = torch.cat([features[rows.to(mixer.device)], features[partners.to(mixer.device)]])
    swapped = torch.arange(2 * count, device=mixer.device).roll(-count)
    shares = torch.full((2 * count,), lam, device=mixer.device)
    return mixer.net.block(both, shares, swapped)[:count]
