"""One pass: requests of one image size through a mixer together, each answered as if it had come alone.

Pairs never cross requests: the partners of each are shifted to its own place in the pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samix.mixing.batch import MixPlan, as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.render import blend, render_masks
from samix.wire import MixCall, MixReply

_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float32): torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one request."""

    reply: MixReply
    """Its answer; not to be sent if a mask is no number."""
    num_nonfinite: int
    """Masks that are infinite or not a number; such a mixer is broken."""
    lambda_error: float
    """Mean of |mean of a mask - its lambda| over the images; NaN if a mask is."""


@torch.inference_mode()
def run_pass(mixer: FrozenMixer, calls: Sequence[MixCall]) -> list[Outcome]:
    """Mix requests of one image size and dtype together."""
    images = _stage_images(calls, mixer.device)
    plan = _stage_plan(calls).to(mixer.device)
    # Rounded to what travels before anything is rendered, so that both reply formats show the same mix.
    logits = mixer.mask_logits(images, plan).half()
    is_finite = logits.isfinite().flatten(1).all(1).cpu()
    errors = _lambda_errors(logits, plan, mixer).cpu()
    answered = logits.cpu().numpy()
    return [
        Outcome(
            reply=MixReply(
                mixer=mixer.name,
                version=mixer.version,
                rendering=mixer.spec.rendering,
                mask_logits=answered[rows],
                images=_mixed(mixer, images[rows], logits[rows], call) if call.wants_images else None,
            ),
            num_nonfinite=int((~is_finite[rows]).sum()),
            lambda_error=float(errors[rows].mean()),
        )
        for call, rows in zip(calls, _rows(calls), strict=True)
    ]


def _rows(calls: Sequence[MixCall]) -> Iterator[slice]:
    """Yield the place of each request in the pass."""
    start = 0
    for call in calls:
        yield slice(start, start + len(call.pixels))
        start += len(call.pixels)


def _stage_images(calls: Sequence[MixCall], device: torch.device) -> Tensor:
    """Copy all pixels, once, to where the device can fetch them."""
    pixels = [call.pixels for call in calls]
    shape = (sum(map(len, pixels)), *pixels[0].shape[1:])
    staged = torch.empty(shape, dtype=_DTYPES[pixels[0].dtype], pin_memory=device.type == "cuda")
    np.concatenate(pixels, out=staged.numpy())
    return staged.to(device, non_blocking=True)


def _stage_plan(calls: Sequence[MixCall]) -> MixPlan:
    partner = np.concatenate([call.partner + rows.start for call, rows in zip(calls, _rows(calls), strict=True)])
    lam = np.concatenate([call.lam for call in calls])
    return MixPlan(lam=torch.from_numpy(lam), partner=torch.from_numpy(partner))


def _lambda_errors(logits: Tensor, plan: MixPlan, mixer: FrozenMixer) -> Tensor:
    # At the size of the logits rather than of the images: the mean is nearly the same, at 1/256 of the cost.
    height, width = logits.shape[-2:]
    masks = render_masks(logits, plan.lam, (height, width), mixer.spec.rendering)
    return (masks.mean((1, 2, 3)) - plan.lam).abs()


def _mixed(mixer: FrozenMixer, images: Tensor, logits: Tensor, call: MixCall) -> np.ndarray:
    """Mix one request's pixels: uint8 [B, 3, H, W]."""
    plan = _stage_plan([call]).to(images.device)
    height, width = images.shape[-2:]
    masks = render_masks(logits, plan.lam, (height, width), mixer.spec.rendering)
    mixed = blend(as_unit_float(images), plan.partner, masks)
    return mixed.mul_(255).round_().to(torch.uint8).cpu().numpy()
