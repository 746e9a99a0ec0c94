"""From logits to mixed pixels: rendering, blending, composing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samix.mixing.batch import MixPlan
from samix.mixing.render import (
    LOGIT_LIMIT,
    Rendering,
    Upsampling,
    blend,
    compose,
    keep_plain,
    mixed_batch,
    render_masks,
    upsample_masks,
)

upsamplings = pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])


def learned(upsampling: Upsampling = "bilinear") -> Rendering:
    return Rendering(upsampling=upsampling, lam_margin=0.0)


@given(
    seed=st.integers(0, 2**32),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    upsampling=st.sampled_from(["nearest", "bilinear"]),
    margin=st.sampled_from([0.0, 0.08, 0.5]),
)
def test_masks_are_shares_at_any_size(
    seed: int, grid: tuple[int, int], size: tuple[int, int], upsampling: Upsampling, margin: float
) -> None:
    """Masks are float32 in [0, 1] of exactly the image's size, odd or not a multiple of the grid."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, 1, *grid, generator=generator) * 20).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    lam = torch.rand(3, generator=generator)

    masks = render_masks(logits.half(), lam, size, Rendering(upsampling=upsampling, lam_margin=margin))

    assert masks.shape == (3, 1, *size)
    assert masks.dtype == torch.float32
    assert ((masks >= 0) & (masks <= 1)).all()


def test_upsampling_comes_before_the_sigmoid() -> None:
    """Between a logit of -4 and one of 4 lies a logit of 0, hence a share of 1/2, and steps are not linear in share."""
    logits = torch.tensor([-4.0, 4.0]).view(1, 1, 1, 2)

    masks = render_masks(logits, torch.tensor([0.5]), (1, 8), learned())

    by_hand = torch.tensor([-4.0, -4.0, -3.0, -1.0, 1.0, 3.0, 4.0, 4.0]).sigmoid()
    torch.testing.assert_close(masks.flatten(), by_hand)


def test_nearest_repeats_each_logit() -> None:
    """Nearest upsampling makes blocks of one share."""
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.0]]).view(1, 1, 2, 2)

    masks = render_masks(logits, torch.tensor([0.5]), (4, 4), learned("nearest"))

    torch.testing.assert_close(masks[0, 0], logits[0, 0].sigmoid().repeat_interleave(2, 0).repeat_interleave(2, 1))


@upsamplings
def test_logits_are_left_alone(upsampling: Upsampling) -> None:
    """Rendering writes into no tensor of the caller, also where nothing is upsampled."""
    logits = torch.full((1, 1, 4, 4), 2.0)

    render_masks(logits, torch.tensor([0.5]), (4, 4), learned(upsampling))

    assert (logits == 2.0).all()


def test_within_the_margin_the_mask_is_lam() -> None:
    """Pairs with lam or 1 - lam up to the margin are mixed plainly, each on its own; the others keep learned masks."""
    lam = torch.tensor([0.0, 0.08, 0.0801, 0.5, 0.9199, 0.92, 1.0])
    logits = torch.full((7, 1, 2, 2), 3.0)

    masks = render_masks(logits, lam, (6, 5), Rendering(upsampling="bilinear", lam_margin=0.08))

    expected = lam.clone()
    expected[2:5] = torch.tensor(3.0).sigmoid()
    torch.testing.assert_close(masks, expected.view(7, 1, 1, 1).expand(7, 1, 6, 5))


def test_without_a_margin_every_mask_is_learned() -> None:
    """A margin of 0 keeps the learned masks of lam = 0 and lam = 1 too, as the reference does."""
    lam = torch.tensor([0.0, 1.0])

    masks = render_masks(torch.full((2, 1, 2, 2), 3.0), lam, (4, 4), learned())

    torch.testing.assert_close(masks, torch.full((2, 1, 4, 4), 3.0).sigmoid())


@given(
    lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    margin=st.floats(0, 0.5, width=32),
    upsampling=st.sampled_from(["nearest", "bilinear"]),
)
def test_rendering_is_upsampling_and_then_the_margin(lam: list[float], margin: float, upsampling: Upsampling) -> None:
    """Whoever changes masks in between, as the lambda adjusting does, takes the two steps apart."""
    logits = torch.randn(len(lam), 1, 3, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor(lam)

    masks = keep_plain(upsample_masks(logits, (6, 6), upsampling), shares, margin)

    rendering = Rendering(upsampling=upsampling, lam_margin=margin)
    assert torch.equal(masks, render_masks(logits, shares, (6, 6), rendering))


@given(lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), margin=st.floats(2**-10, 0.5, width=32))
def test_a_mask_is_kept_or_becomes_lam(lam: list[float], margin: float) -> None:
    """Each mask is either untouched or its lam everywhere, and which of them its own lam alone decides."""
    shares = torch.tensor(lam)
    masks = torch.rand(len(lam), 1, 2, 3, generator=torch.Generator().manual_seed(0))

    kept = keep_plain(masks, shares, margin)

    for mask, before, share in zip(kept, masks, shares, strict=True):
        plain = torch.minimum(share, 1 - share) <= margin
        assert torch.equal(mask, share.expand_as(before) if plain else before)


@pytest.mark.parametrize(("lam", "row"), [(1.0, 0), (0.0, 1)])
def test_at_the_ends_the_pixels_are_untouched(lam: float, row: int) -> None:
    """Within the margin lam = 1 gives the image itself and lam = 0 its partner, bit for bit."""
    images = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    plan = MixPlan(lam=torch.full((2,), lam), partner=torch.tensor([1, 0]))

    mixed = compose(images, None, plan, torch.ones(2, 1, 2, 2), Rendering(upsampling="bilinear", lam_margin=0.08))

    assert torch.equal(mixed.images[0], images[row])


@given(seed=st.integers(0, 2**32))
def test_blending_stays_between_the_two_pixels(seed: int) -> None:
    """blend is masks * x + (1 - masks) * partner, and never leaves the range of the two."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 5, 6, generator=generator)
    masks = torch.rand(4, 1, 5, 6, generator=generator)
    partner = torch.randperm(4, generator=generator)

    mixed = blend(images, partner, masks)

    torch.testing.assert_close(mixed, masks * images + (1 - masks) * images[partner])
    low, high = torch.minimum(images, images[partner]), torch.maximum(images, images[partner])
    assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()
    assert ((mixed >= 0) & (mixed <= 1)).all()


def test_gradients_reach_the_logits() -> None:
    """Rendering and blending are differentiable: the mixer learns through them."""
    logits = torch.zeros(2, 1, 2, 2, requires_grad=True)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    masks = render_masks(logits, torch.tensor([0.3, 0.6]), (8, 8), learned())
    blend(images, torch.tensor([1, 0]), masks).square().sum().backward()

    assert logits.grad is not None
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_compose_makes_the_whole_batch(dtype: torch.dtype) -> None:
    """compose takes any pixels and half-precision logits; it gives float32 pixels, paired labels and the plan's lam."""
    images = torch.ones(2, 3, 9, 9).to(dtype)
    plan = MixPlan(lam=torch.tensor([0.3, 0.6]), partner=torch.tensor([1, 0]))

    mixed = compose(images, torch.tensor([4, 7]), plan, torch.zeros(2, 1, 3, 3).half(), learned())

    assert mixed.images.dtype == torch.float32
    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    assert mixed.labels_a.tolist() == [4, 7]
    assert mixed.labels_b.tolist() == [7, 4]
    assert mixed.lam.tolist() == pytest.approx([0.3, 0.6])
    assert (mixed.masks == 0.5).all()


def test_known_masks_are_blended_as_they_are() -> None:
    """mixed_batch takes masks from anywhere: their mean need not be the plan's lam, which is what labels weigh."""
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    plan = MixPlan(lam=torch.tensor([0.3, 0.6]), partner=torch.tensor([1, 0]))
    masks = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)

    mixed = mixed_batch(images, None, plan, masks)

    assert mixed.images.mean(dim=(1, 2, 3)).tolist() == [0.75, 1.0]
    assert (mixed.labels_a, mixed.labels_b) == (None, None)
    assert torch.equal(mixed.lam, plan.lam)
