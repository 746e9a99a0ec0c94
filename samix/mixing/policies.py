"""Hand-crafted policies behind the `Mixer` protocol: no mixing, Mixup and CutMix.

One lam for the batch, as their papers have it, unless the caller gives one for each image.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samix.errors import BadBatch
from samix.mixing.batch import MixedBatch, MixPlan, check_images, check_labels
from samix.mixing.plan import check_alpha, generator_for, resolve_plan
from samix.mixing.render import mixed_batch

MakeMasks = Callable[[MixPlan, tuple[int, int], torch.Generator | None], tuple[MixPlan, Tensor]]
"""From a plan and the size of the images to masks float32 [B, 1, H, W], and the plan with the lam they really have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandCraftedMixer:
    """A policy: draw a plan, make masks for it, blend."""

    make_masks: MakeMasks
    """What tells one policy from another."""
    alpha: float | None
    """Both parameters of the Beta distribution of lam; None leaves every image as it is, whatever the caller gives."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_alpha(self.alpha)

    def mix(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int | None = None,
        lam: float | Tensor | None = None,
        partner: Tensor | None = None,
    ) -> MixedBatch:
        """Mix one batch; see `Mixer.mix`."""
        generator = None if seed is None else generator_for(seed)
        return self._mix(images, labels, lam, partner, generator)

    def stream(
        self,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        *,
        seed: int,
        depth: int = 4,  # noqa: ARG002 - nothing overlaps in process
    ) -> Iterator[MixedBatch]:
        """Mix batches in order; see `Mixer.stream`."""
        for index, (images, labels) in enumerate(batches):
            yield self._mix(images, labels, None, None, generator_for(seed, index))

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
        if self.alpha is None:
            plan = MixPlan(lam=torch.ones(len(images)), partner=torch.arange(len(images)))
        else:
            plan = resolve_plan(len(images), lam=lam, partner=partner, generator=generator, alpha=self.alpha)
        plan, masks = self.make_masks(plan, (images.shape[2], images.shape[3]), generator)
        return mixed_batch(images, labels, plan.to(images.device), masks.to(images.device))


def mixup(alpha: float = 1.0) -> HandCraftedMixer:
    """Mix whole images with a constant mask (Zhang et al., arXiv:1710.09412); alpha is 1 on CIFAR, 0.2 on ImageNet."""
    return HandCraftedMixer(make_masks=_constant_masks, alpha=alpha)


def cutmix(alpha: float = 1.0) -> HandCraftedMixer:
    """Paste a box of the partner and set lam to the share that stayed (Yun et al., arXiv:1905.04899).

    alpha is 1 on ImageNet; 0.2 did best on CIFAR in the published comparison. Always needs a seed: it draws its box.
    """
    return HandCraftedMixer(make_masks=_box_masks, alpha=alpha)


def no_mixing() -> HandCraftedMixer:
    """Leave every image as it is, in the shape of a mix with lam = 1; needs no seed."""
    return HandCraftedMixer(make_masks=_constant_masks, alpha=None)


def _constant_masks(plan: MixPlan, size: tuple[int, int], _generator: torch.Generator | None) -> tuple[MixPlan, Tensor]:
    return plan, plan.lam.view(-1, 1, 1, 1).expand(-1, 1, *size)


def _box_masks(plan: MixPlan, size: tuple[int, int], generator: torch.Generator | None) -> tuple[MixPlan, Tensor]:
    if generator is None:
        raise BadBatch("CutMix draws where its box lies: give seed=, also beside lam= and partner=")
    rows = _covered(plan.lam, size[0], generator).view(-1, 1, size[0], 1)
    columns = _covered(plan.lam, size[1], generator).view(-1, 1, 1, size[1])
    masks = 1 - rows * columns
    return MixPlan(lam=masks.mean(dim=(1, 2, 3)), partner=plan.partner), masks


def _covered(lam: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Draw the cells of one axis that the boxes cover, float32 [B, length].

    A box is sqrt(1 - lam) of the side long, centred anywhere and clipped at the edge. Where lam is one number for the
    batch there is one box for the batch, as published.
    """
    num_boxes = 1 if bool((lam == lam[0]).all()) else len(lam)
    centre = torch.rand(num_boxes, 1, generator=generator) * length
    half = ((1 - lam).sqrt() * length).floor().view(-1, 1) / 2
    cells = torch.arange(length)
    return ((cells >= (centre - half).floor()) & (cells < (centre + half).floor())).float()
