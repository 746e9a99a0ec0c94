"""Rescaled masks weigh what their lam says, and keep what else they had."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samix.mixing.adjust import adjust_masks

UNIT = st.floats(0, 1, width=32)
PAIRS = st.lists(st.tuples(st.lists(UNIT, min_size=6, max_size=6), UNIT), min_size=1, max_size=4)
"""Masks of six pixels, each with its lam."""


def tensors(pairs: list[tuple[list[float], float]]) -> tuple[Tensor, Tensor]:
    masks, lam = zip(*pairs, strict=True)
    return torch.tensor(masks).view(-1, 1, 2, 3), torch.tensor(lam)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_the_mean_becomes_lam(pairs: list[tuple[list[float], float]]) -> None:
    """Whatever mask and lam, the adjusted mask has mean lam and stays in [0, 1]."""
    masks, lam = tensors(pairs)

    adjusted = adjust_masks(masks, lam)

    torch.testing.assert_close(adjusted.mean(dim=(1, 2, 3)), lam, atol=1e-6, rtol=1e-5)
    assert adjusted.min() >= 0
    assert adjusted.max() <= 1


@settings(deadline=None)
@given(pairs=PAIRS)
def test_the_partners_mask_is_adjusted_alike(pairs: list[tuple[list[float], float]]) -> None:
    """Adjusting 1 - mask to 1 - lam gives one minus the adjusted mask."""
    masks, lam = tensors(pairs)

    adjusted = adjust_masks(masks, lam)

    torch.testing.assert_close(adjust_masks(1 - masks, 1 - lam), 1 - adjusted, atol=1e-5, rtol=0)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_the_order_of_pixels_is_kept(pairs: list[tuple[list[float], float]]) -> None:
    """What was more of image i than another pixel is not less of it afterwards."""
    masks, lam = tensors(pairs)
    order = masks.flatten(1).argsort(dim=1)

    sorted_as_before = adjust_masks(masks, lam).flatten(1).gather(1, order)

    assert (sorted_as_before.diff(dim=1) >= -1e-6).all()


def test_a_heavy_mask_is_scaled_and_a_light_one_filled_up() -> None:
    """Too heavy: mask * lam / mean. Too light: the partner's share times (1 - lam) / (1 - mean)."""
    masks = torch.tensor([[0.8, 0.4, 0.0, 0.8], [0.2, 0.6, 1.0, 0.2]]).view(2, 1, 2, 2)

    adjusted = adjust_masks(masks, torch.tensor([0.25, 0.75]))

    expected = torch.tensor([[0.4, 0.2, 0.0, 0.4], [0.6, 0.8, 1.0, 0.6]])
    torch.testing.assert_close(adjusted.flatten(1), expected)


def test_a_right_mask_stays_as_it_is() -> None:
    """A mask whose mean is lam is returned bit for bit."""
    masks = torch.tensor([0.25, 0.75, 0.0, 1.0]).view(1, 1, 2, 2)

    assert torch.equal(adjust_masks(masks, torch.tensor([0.5])), masks)


def test_rounding_does_not_leave_the_unit_interval() -> None:
    """Filled up to lam = 1, a mask whose pixels would round to 1.0000001 ends at 1."""
    pixels = [0.1613115668296814, 0.19140785932540894, 0.6187440752983093]
    pixels += [0.29476356506347656, 0.7982244491577148, 0.20057404041290283]

    adjusted = adjust_masks(torch.tensor(pixels).view(1, 1, 2, 3), torch.tensor([1.0]))

    assert adjusted.max() == 1


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_an_empty_mask_becomes_its_lam(constant: float, lam: float) -> None:
    """Masks of only zeros or only ones are defined, for every lam, and so are their gradients."""
    masks = torch.full([1, 1, 2, 2], constant, requires_grad=True)

    adjusted = adjust_masks(masks, torch.tensor([lam]))
    adjusted.sum().backward()

    assert adjusted.flatten().tolist() == pytest.approx([lam] * 4)
    assert masks.grad is not None
    assert masks.grad.isfinite().all()


def test_the_mean_is_the_lam_that_was_asked_for() -> None:
    """The classifier's masks get the classifier's lam, 0.62, not the mixer's 0.35 (B3)."""
    masks = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    adjusted = adjust_masks(masks, torch.full([6], 0.62))

    assert adjusted.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.62] * 6)
