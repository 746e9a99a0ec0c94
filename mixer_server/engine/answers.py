"""From the mask logits of a pass to what each of its requests is answered, on whatever device the pass ran."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samix.mixing.batch import MixPlan, as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.render import render_masks
from samix.wire import MixCall, MixReply

_CPU_IMAGES_AT_ONCE = 4
"""That are blended, so that they stay in the caches: 64 images of 224 px take 30 ms rather than 75 on one core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one request."""

    reply: MixReply
    """Its answer; not to be sent if a mask is no number."""
    num_nonfinite: int
    """Masks that are infinite or not a number; such a mixer is broken."""
    lambda_error: float
    """Mean of |mean of a mask - its lambda| over the images; NaN if a mask is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The tensors of a pass of N images, all on one device."""

    mask_logits: Tensor
    """float16 [N, 1, h, w] of image i's share."""
    is_finite: Tensor
    """bool [N]: whether all logits of an image are numbers."""
    lambda_errors: Tensor
    """float32 [N]: |mean of the mask - lambda|."""
    images: tuple[Tensor | None, ...]
    """For each request its mixed images, uint8 or float16 [B, 3, H, W]; None where they are not wanted."""


def stage_plan(calls: Sequence[MixCall]) -> MixPlan:
    """Put the plans of all requests into one. Pairs never cross requests: partners move to their request's place."""
    partner = np.concatenate([call.partner + rows.start for call, rows in zip(calls, rows_of(calls), strict=True)])
    lam = np.concatenate([call.lam for call in calls])
    return MixPlan(lam=torch.from_numpy(lam), partner=torch.from_numpy(partner))


def rows_of(calls: Sequence[MixCall]) -> Iterator[slice]:
    """Yield the place of each request in the pass."""
    start = 0
    for call in calls:
        yield slice(start, start + len(call.pixels))
        start += len(call.pixels)


def work_out(mixer: FrozenMixer, calls: Sequence[MixCall], images: Tensor, plan: MixPlan, logits: Tensor) -> Answers:
    """Make all answers of a pass.

    Args:
        mixer: whose pass it was.
        calls: the requests, of N images together.
        images: uint8 or float32 [N, 3, H, W].
        plan: of all requests, on the device of the images.
        logits: float32 [N, 1, h, w], of the mixer, likewise.
    """
    # Rounded to what travels before anything is rendered, so that all reply formats show the same mix.
    rounded = logits.half()
    parts = zip(calls, rows_of(calls), strict=True)
    return Answers(
        mask_logits=rounded,
        is_finite=rounded.isfinite().flatten(1).all(1),
        lambda_errors=_lambda_errors(mixer, plan, rounded),
        images=tuple(
            _mix(mixer, call, images[rows], plan.lam[rows], plan.partner[rows] - rows.start, rounded[rows])
            if call.wants_images
            else None
            for call, rows in parts
        ),
    )


def outcomes_of(mixer: FrozenMixer, calls: Sequence[MixCall], answers: Answers) -> list[Outcome]:
    """Give each request its part of the answers, which are on the CPU."""
    logits, finite, errors = answers.mask_logits.numpy(), answers.is_finite.numpy(), answers.lambda_errors.numpy()
    return [
        Outcome(
            reply=MixReply(
                mixer=mixer.name,
                version=mixer.version,
                rendering=mixer.spec.rendering,
                mask_logits=logits[rows],
                images=None if images is None else images.numpy(),
            ),
            num_nonfinite=int(np.count_nonzero(~finite[rows])),
            lambda_error=float(errors[rows].mean()),
        )
        for images, rows in zip(answers.images, rows_of(calls), strict=True)
    ]


def _lambda_errors(mixer: FrozenMixer, plan: MixPlan, logits: Tensor) -> Tensor:
    # At the size of the logits rather than of the images: the mean is nearly the same, at 1/256 of the cost.
    height, width = logits.shape[-2:]
    masks = render_masks(logits, plan.lam, (height, width), mixer.spec.rendering)
    return (masks.mean((1, 2, 3)) - plan.lam).abs()


def _mix(mixer: FrozenMixer, call: MixCall, images: Tensor, lam: Tensor, partner: Tensor, logits: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    is_fine = call.image_dtype == np.float16
    mixed = torch.empty(images.shape, dtype=torch.float16 if is_fine else torch.uint8, device=images.device)
    at_once = _CPU_IMAGES_AT_ONCE if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), at_once):
        rows = slice(start, start + at_once)
        masks = render_masks(logits[rows], lam[rows], (height, width), mixer.spec.rendering)
        part = torch.lerp(as_unit_float(images[partner[rows]]), as_unit_float(images[rows]), masks)  # as render.blend
        mixed[rows] = part if is_fine else part.mul_(255).round_()
    return mixed
