"""FMix: masks from low-frequency noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samix.errors import ConfigError
from samix.mixing.policies import fmix
from samix.mixing.policies.fmix import low_frequency_noise


def noise(size: tuple[int, int], decay: float = 3.0, count: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low_frequency_noise(count, size, decay=decay, generator=generator, device=torch.device("cpu"))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), lam=st.floats(0, 1), size=st.tuples(st.integers(1, 33), st.integers(1, 33)))
def test_the_mask_is_binary_and_has_lam_of_the_pixels(seed: int, lam: float, size: tuple[int, int]) -> None:
    """A mask holds 0 and 1 alone, and as many 1s as lam asks for, rounded to whole pixels."""
    num_pixels = size[0] * size[1]

    masks = fmix().mix(torch.zeros(2, 3, *size), seed=seed, lam=lam).masks

    assert ((masks == 0) | (masks == 1)).all()
    assert abs(masks[0].sum().item() - lam * num_pixels) <= 0.5 + 1e-3


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_lam_only_adds_pixels(seed: int, low: float, high: float) -> None:
    """With one seed the mask of a larger lam contains that of a smaller one."""
    low, high = sorted((low, high))

    smaller, larger = (fmix().mix(torch.zeros(1, 3, 16, 12), seed=seed, lam=lam).masks for lam in (low, high))

    assert (larger >= smaller).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 31)])
def test_the_amplitude_falls_with_the_power_of_the_frequency(size: tuple[int, int]) -> None:
    """Over many draws the amplitude at frequency f is proportional to 1 / f^3."""
    spectrum = torch.fft.rfft2(noise(size, count=400)).abs().mean(dim=0)

    frequency = torch.hypot(torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1]))
    inner = (frequency > 1.5 / min(size)) & (frequency < 0.4)
    inner[:, 0] = False  # the numbers there are real in part: another mean
    scaled = (spectrum * frequency**3)[inner]
    assert scaled.std() / scaled.mean() < 0.1


def test_masks_are_a_few_large_shapes() -> None:
    """At decay 3 neighbours are nearly always on the same side of the mask; at decay 0 as often as not."""
    smooth, rough = (fmix(decay=decay).mix(torch.zeros(1, 3, 64, 64), seed=5, lam=0.5).masks for decay in (3.0, 0.0))

    changes = [masks.diff(dim=3).abs().mean().item() for masks in (smooth, rough)]
    assert changes[0] < 0.05
    assert changes[1] > 0.4


def test_a_soft_mask_ramps_and_keeps_lam() -> None:
    """max_soft = 0.2 lets 40 % of the pixels fall from 1 to 0; near the ends as many as there are."""
    images = torch.zeros(3, 3, 50, 40)

    masks = fmix(max_soft=0.2).mix(images, seed=1, lam=torch.tensor([0.5, 0.9, 0.0])).masks

    between = ((masks > 0) & (masks < 1)).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(between, torch.tensor([0.4, 0.2, 0.0]), atol=2e-3, rtol=0)
    torch.testing.assert_close(masks.mean(dim=(1, 2, 3)), torch.tensor([0.5, 0.9, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"decay": -1.0}, "decay must lie in 0..10, got -1.0; the paper's is 3"),
        ({"decay": float("nan")}, "got nan"),
        ({"max_soft": 0.6}, "max_soft must lie in 0..0.5, got 0.6; the paper's is 0"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], complaint: str) -> None:
    """Settings are refused when the policy is made."""
    with pytest.raises(ConfigError, match=complaint):
        fmix(**wrong)
