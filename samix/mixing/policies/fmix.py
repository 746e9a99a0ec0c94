"""FMix: masks of any shape, made by thresholding noise whose spectrum falls off with the frequency.

Only the ranks of the pixels matter, so the mask grows with lam without changing its shape: the same seed with a larger
lam gives a mask that contains the smaller one.
"""

from functools import partial

import torch
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, blended, distinct_lam, needed


def fmix(alpha: float = 1.0, *, decay: float = 3.0, max_soft: float = 0.0) -> HandCraftedMixer:
    """Mix by a low-frequency mask whose mean is lam (Harris et al., arXiv:2002.12047, section 4).

    Always needs a seed: it draws its mask.

    Args:
        alpha: 1 in the paper; 0.2 did best on CIFAR in the published comparison.
        decay: power by which amplitudes fall with the frequency; larger makes smoother shapes.
        max_soft: half the share of the pixels in which the mask falls from 1 to 0; 0 is a binary mask.

    Raises:
        ConfigError: if alpha, decay or max_soft is out of bounds.
    """
    if not 0 <= decay <= 10:
        raise ConfigError(f"FMix's decay must lie in 0..10, got {decay}; the paper's is 3")
    if not 0 <= max_soft <= 0.5:
        raise ConfigError(f"FMix's max_soft must lie in 0..0.5, got {max_soft}; the paper's is 0")
    return HandCraftedMixer(compose=partial(_compose, decay, max_soft), alpha=alpha)


def low_frequency_noise(
    count: int, size: tuple[int, int], *, decay: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw float32 [count, H, W] whose amplitude at frequency f is proportional to 1 / f^decay.

    The lowest frequencies are bounded by one period of the longer side, as in the paper. `generator` is on the CPU.
    """
    height, width = size
    spectrum = torch.randn(count, height, width // 2 + 1, dtype=torch.complex64, generator=generator).to(device)
    rows, columns = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
    frequency = torch.hypot(rows[:, None], columns).clamp(min=1 / max(size))
    return torch.fft.irfft2(spectrum * frequency**-decay, s=size)


def _compose(
    decay: float,
    max_soft: float,
    images: Tensor,
    labels: Tensor | None,
    plan: MixPlan,
    generator: torch.Generator | None,
) -> MixedBatch:
    generator = needed(generator, "FMix draws the shape of its mask")
    lam = distinct_lam(plan.lam)
    size = (images.shape[2], images.shape[3])
    noise = low_frequency_noise(len(lam), size, decay=decay, generator=generator, device=images.device)
    return blended(images, labels, plan, _threshold(noise, lam.to(images.device), max_soft))


def _threshold(noise: Tensor, lam: Tensor, max_soft: float) -> Tensor:
    # Masks [n, 1, H, W]: 1 at the highest pixels, in number a share lam up to rounding, and a ramp between.
    num_pixels = noise[0].numel()
    ranks = noise.flatten(1).argsort(dim=1, descending=True).argsort(dim=1)  # 0 is the highest
    kept = (lam * num_pixels).round()[:, None]
    # The ramp must not leave the image; half a pixel makes it a step.
    soft = (torch.minimum(lam, 1 - lam).clamp(max=max_soft) * num_pixels).clamp(min=0.5)[:, None]
    return ((kept - ranks - 0.5) / (2 * soft) + 0.5).clamp(0, 1).view(-1, 1, *noise.shape[1:])
