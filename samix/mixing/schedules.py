"""What changes over a run, as pure functions of the step: the momentum of the copy, the weight of the mask loss.

A step is numbered from 0, so that the values at `step == total_steps` are the ends no step quite reaches.
"""

import functools
import math
from typing import Literal

import numpy as np

from samix.errors import ConfigError

MaskSchedule = Literal["linear", "constant", "compounding"]
"""How the weight of the mask loss falls; see `mask_weight`."""


def ema_momentum(step: int, total_steps: int, *, start: float, end: float, constant_share: float = 0.1) -> float:
    """Momentum of the copy: constant at first, then rising with a cosine to its end.

    The cosine counts from the first step, not from the end of the constant part. So the public reference has it, and
    the momentum jumps there a little: from 0.999 to 0.999024.

    Args:
        step: number of the step, 0..total_steps.
        total_steps: steps of the whole run.
        start: momentum at first, 0.999.
        end: momentum at the last step: 0.999999 on CIFAR and Tiny, 0.99999 on ImageNet.
        constant_share: share of the run before it rises; 0.25 for vision transformers.
    """
    progress = step / total_steps
    if progress < constant_share:
        return start
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


def mask_weight(kind: MaskSchedule, base: float, step: int, total_steps: int) -> float:
    """Weight of the mask loss (beta).

    `linear` falls to 0 at the end of the run (SAMix, arXiv:2111.15454, section A.2). `constant` is what the public
    reference does on CIFAR and Tiny. `compounding` is its cosine hook of ImageNet and CUB, which scales the weight of
    the step before instead of the first one (B2), so that of 0.1 there is 0.0037 left after 2 epochs of 100.

    Args:
        kind: which of the three.
        base: weight at the first step, 0.1.
        step: number of the step, 0..total_steps.
        total_steps: steps of the whole run.

    Raises:
        ConfigError: if there is no such schedule.
    """
    if kind == "linear":
        return base * (1 - step / total_steps)
    if kind == "constant":
        return base
    if kind == "compounding":
        return base * float(_compounded_cosines(total_steps)[step])
    raise ConfigError(f"mask_schedule is linear, constant or compounding, got {kind!r}")


@functools.lru_cache(maxsize=2)  # one run has one length; 4 MB for the 500,000 steps of 100 epochs of ImageNet
def _compounded_cosines(total_steps: int) -> np.ndarray:
    """Products of (1 + cos(pi t / T)) / 2 over t = 0..step, for every step 0..T."""
    progress = np.arange(total_steps + 1) / total_steps
    return np.cumprod((1 + np.cos(np.pi * progress)) / 2)
