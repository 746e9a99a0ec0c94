"""What all hand-crafted policies share: they draw a plan and compose the batch behind the `Mixer` protocol.

One lam for the batch, as their papers have it, unless the caller gives one for each image. Where a policy draws
something more (a box, a mask), equal lams share one draw.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samix.errors import BadBatch
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float, check_images, check_labels
from samix.mixing.in_process import InProcessMixer
from samix.mixing.plan import check_alpha, resolve_plan
from samix.mixing.render import blend

Compose = Callable[[Tensor, Tensor | None, MixPlan, torch.Generator | None], MixedBatch]
"""From images float32 [B, 3, H, W] in [0, 1] on any device, labels or None, a plan on the CPU and a generator on the
CPU (None if the caller gave no seed) to the mix on the device of the images."""


def _same(lam: Tensor) -> Tensor:
    return lam


@dataclass(frozen=True, kw_only=True, slots=True)
class HandCraftedMixer(InProcessMixer):
    """A policy: draw a plan, compose the batch by it."""

    compose: Compose
    """What tells one policy from another."""
    alpha: float | None
    """Both parameters of the Beta distribution of lam; None leaves every image as it is, whatever the caller gives."""
    lam_of_draw: Callable[[Tensor], Tensor] = _same
    """From draws of Beta(alpha, alpha) to lam, both float32 [B]; a lam that the caller gives does not pass here."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_alpha(self.alpha)

    def _mix(
        self,
        images: Tensor,
        labels: Tensor | None,
        lam: float | Tensor | None,
        partner: Tensor | None,
        generator: torch.Generator | None,
    ) -> MixedBatch:
        check_images(images)
        check_labels(labels, len(images))
        plan = self._plan(len(images), lam, partner, generator)
        return self.compose(as_unit_float(images), labels, plan, generator)

    def _plan(
        self, batch_size: int, lam: float | Tensor | None, partner: Tensor | None, generator: torch.Generator | None
    ) -> MixPlan:
        if self.alpha is None:
            return MixPlan(lam=torch.ones(batch_size), partner=torch.arange(batch_size))
        plan = resolve_plan(batch_size, lam=lam, partner=partner, generator=generator, alpha=self.alpha)
        return plan if lam is not None else replace(plan, lam=self.lam_of_draw(plan.lam))


def needed(generator: torch.Generator | None, drawing: str) -> torch.Generator:
    """Refuse to draw without a seed.

    Args:
        generator: what the caller's seed made, if there was one.
        drawing: policy and what it draws, for example "CutMix draws where its box lies".

    Raises:
        BadBatch: if there is no generator.
    """
    if generator is None:
        raise BadBatch(f"{drawing}: give seed=, also beside lam= and partner=")
    return generator


def distinct_lam(lam: Tensor) -> Tensor:
    """Shorten lam float32 [B] to [1] where it is one number for the batch, so that what is drawn for it is shared."""
    return lam[:1] if bool((lam == lam[0]).all()) else lam


def blended(
    images: Tensor, labels: Tensor | None, plan: MixPlan, masks: Tensor, lam: Tensor | None = None
) -> MixedBatch:
    """Blend each image with its partner by masks float32 [B or 1, 1, H, W]; see `batch_of`."""
    masks = masks.to(images.device)
    return batch_of(blend(images, plan.partner.to(images.device), masks), labels, plan, masks, lam)


def batch_of(
    images: Tensor, labels: Tensor | None, plan: MixPlan, masks: Tensor, lam: Tensor | None = None
) -> MixedBatch:
    """Pair the labels of images that are mixed already.

    Args:
        images: float32 [B, 3, H, W], the mix.
        labels: int64 [B], or None.
        plan: who was mixed with whom.
        masks: float32 [B or 1, 1, H, W] on the device of the images: share of image i.
        lam: float32 [B], share of labels_a; None takes the area that the masks really show.
    """
    masks = masks.expand(len(images), -1, -1, -1)
    return MixedBatch(
        images=images,
        labels_a=labels,
        labels_b=None if labels is None else labels[plan.partner.to(labels.device)],
        lam=masks.mean(dim=(1, 2, 3)) if lam is None else lam.to(images.device),
        masks=masks,
    )
