"""Hand-crafted policies: Mixup, CutMix and no mixing behind the Mixer protocol."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samix.errors import BadBatch, ConfigError
from samix.mixing.policies import HandCraftedMixer, cutmix, mixup, no_mixing

POLICIES = {"mixup": mixup(), "cutmix": cutmix(), "none": no_mixing()}
every_policy = pytest.mark.parametrize("mixer", POLICIES.values(), ids=POLICIES.keys())


def pictures(batch_size: int = 6, height: int = 12, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)


@every_policy
def test_a_mix_is_the_blend_of_its_masks(mixer: HandCraftedMixer) -> None:
    """Images are masks * x + (1 - masks) * partner, labels_b are the partner's, and lam is the mask's mean."""
    images, labels, partner = pictures(), torch.arange(6), torch.tensor([1, 2, 3, 4, 5, 0])

    mixed = mixer.mix(images, labels, seed=3, partner=partner)

    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    x = images.float() / 255
    torch.testing.assert_close(mixed.images, mixed.masks * x + (1 - mixed.masks) * x[mixed.labels_b])
    assert torch.equal(mixed.labels_a, labels)
    torch.testing.assert_close(mixed.masks.mean(dim=(1, 2, 3)), mixed.lam)
    assert mixed.images.dtype == mixed.masks.dtype == mixed.lam.dtype == torch.float32
    assert mixed.masks.shape == (6, 1, 12, 9)


@every_policy
def test_equal_seeds_mix_alike_and_others_differ(mixer: HandCraftedMixer) -> None:
    """A mix is a function of batch and seed; without labels there are none."""
    images = pictures()

    first, again, other = (mixer.mix(images, seed=seed) for seed in (7, 7, 8))

    assert torch.equal(first.images, again.images)
    assert torch.equal(first.lam, again.lam)
    assert (first.labels_a, first.labels_b) == (None, None)
    assert torch.equal(first.images, other.images) == (mixer is POLICIES["none"])


@every_policy
def test_a_stream_repeats_and_gives_every_batch_its_own_plan(mixer: HandCraftedMixer) -> None:
    """stream mixes in order, draws batch i from (seed, i), and repeats."""
    batches = [(pictures(), torch.arange(6))] * 3

    first, again = (list(mixer.stream(iter(batches), seed=5)) for _ in range(2))

    assert len(first) == 3
    assert all(torch.equal(one.images, two.images) for one, two in zip(first, again, strict=True))
    assert len({tuple(mixed.lam.tolist()) for mixed in first}) == (1 if mixer is POLICIES["none"] else 3)


@every_policy
def test_what_goes_in_is_left_alone(mixer: HandCraftedMixer) -> None:
    """Mixing changes neither the images it was given nor the global random state."""
    images = pictures().float() / 255
    copy, state = images.clone(), torch.get_rng_state()

    mixed = mixer.mix(images, seed=1)
    mixed.images.zero_()

    assert torch.equal(images, copy)
    assert torch.equal(torch.get_rng_state(), state)


@every_policy
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_any_pixel_kind_is_taken(mixer: HandCraftedMixer, dtype: torch.dtype) -> None:
    """uint8 and any float in [0, 1] come out as float32 in [0, 1]."""
    images = pictures() if dtype == torch.uint8 else (pictures() / 255).to(dtype)

    mixed = mixer.mix(images, seed=1)

    assert mixed.images.dtype == torch.float32
    assert 0 <= mixed.images.min() <= mixed.images.max() <= 1


def test_no_mixing_needs_nothing() -> None:
    """no_mixing gives the images themselves with lam 1, also without a seed."""
    images = pictures().float() / 255

    mixed = no_mixing().mix(images, torch.arange(6))

    assert torch.equal(mixed.images, images)
    assert mixed.lam.tolist() == [1.0] * 6
    assert mixed.labels_b is not None
    assert mixed.labels_b.tolist() == list(range(6))
    assert (mixed.masks == 1).all()


def test_mixup_gives_each_image_its_own_lam() -> None:
    """One lam for each image makes one constant mask for each."""
    lam = torch.tensor([0.0, 0.25, 1.0])

    mixed = mixup().mix(pictures(3), lam=lam, partner=torch.tensor([2, 0, 1]))

    assert torch.equal(mixed.masks, lam.view(3, 1, 1, 1).expand(3, 1, 12, 9))
    assert torch.equal(mixed.lam, lam)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lam=st.floats(0, 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    per_sample=st.booleans(),
)
def test_cutmix_pastes_one_clipped_box(seed: int, lam: float, height: int, width: int, per_sample: bool) -> None:
    """The pasted area is one box, no larger than sqrt(1 - lam) of each side, and lam is exactly what stayed."""
    images = torch.zeros(3, 3, height, width)
    shares = torch.tensor([lam, 0.3, 0.9] if per_sample else [lam] * 3)

    mixed = cutmix().mix(images, seed=seed, lam=shares, partner=torch.tensor([1, 2, 0]))

    assert torch.equal(mixed.masks.mean(dim=(1, 2, 3)), mixed.lam)
    assert ((mixed.masks == 0) | (mixed.masks == 1)).all()
    pasted = 1 - mixed.masks[:, 0]
    for box, share in zip(pasted, shares.tolist(), strict=True):
        rows, columns = box.amax(dim=1), box.amax(dim=0)
        assert torch.equal(box, rows.outer(columns))
        for cells in (rows, columns):
            side = (1 - share) ** 0.5 * len(cells)
            assert cells.sum() <= side + 1e-3
            assert (cells.diff().abs().sum() + cells[0] + cells[-1]) in (0, 2)  # one run of ones


def test_cutmix_keeps_the_share_where_the_box_is_not_clipped() -> None:
    """Boxes away from the edge cover 1 - lam of the image, up to whole pixels; clipping only makes them smaller."""
    images = torch.zeros(2, 3, 100, 100)

    kept = torch.stack([cutmix().mix(images, seed=seed, lam=0.84).lam[0] for seed in range(60)])

    assert kept.min().item() == pytest.approx(0.84, abs=1e-6)  # a box of 40 x 40
    assert (kept - 0.84).abs().lt(1e-6).float().mean() > 0.2
    assert kept.max() > 0.84


def test_cutmix_boxes_lie_everywhere() -> None:
    """Each pixel is pasted over by some box, the corners too."""
    images = torch.zeros(1, 3, 16, 16)

    pasted = torch.stack([1 - cutmix().mix(images, seed=seed, lam=0.75).masks[0, 0] for seed in range(300)])

    assert (pasted.sum(dim=0) > 0).all()


def test_cutmix_draws_one_box_for_one_lam_and_else_one_for_each() -> None:
    """One lam for the batch is one box, as published; one for each image is a box for each."""
    images = pictures(4, 32, 32)

    one = cutmix().mix(images, seed=1, lam=0.5).masks
    each = cutmix().mix(images, seed=1, lam=torch.tensor([0.5, 0.51, 0.52, 0.53])).masks

    assert len(one.flatten(1).unique(dim=0)) == 1
    assert len(each.flatten(1).unique(dim=0)) == 4


def test_cutmix_without_a_seed_is_refused() -> None:
    """CutMix draws its box, so lam and partner alone do not make the mix repeatable."""
    with pytest.raises(BadBatch, match="give seed="):
        cutmix().mix(pictures(2), lam=0.5, partner=torch.tensor([1, 0]))


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("policy", [mixup, cutmix])
def test_an_impossible_alpha_is_refused_early(policy, alpha: float) -> None:
    """A policy refuses its alpha when it is made, not at its first batch."""
    with pytest.raises(ConfigError, match=f"got {alpha}; use the policy 'none'"):
        policy(alpha)


@every_policy
@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.zeros(2, 1, 4, 4), r"got \[2, 1, 4, 4\]"),
        (torch.zeros(3, 4, 4), r"got \[3, 4, 4\]"),
        (torch.zeros(0, 3, 4, 4), r"no empty side, got \[0, 3, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "got torch.int64"),
        (torch.full((2, 3, 4, 4), 255.0), r"\[0, 1\], got 255.0 to 255.0; normalise after mixing"),
        (torch.full((2, 3, 4, 4), -0.5), "got -0.5"),
        (torch.full((2, 3, 4, 4), float("nan")), "got nan"),
    ],
)
def test_wrong_images_are_refused(mixer: HandCraftedMixer, images: Tensor, complaint: str) -> None:
    """Images of a wrong shape, kind or range (already normalised, for example) are refused by value."""
    with pytest.raises(BadBatch, match=complaint):
        mixer.mix(images, seed=0)


@every_policy
@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (torch.zeros(5, dtype=torch.int64), r"int64 \[6\], got torch.int64 \[5\]"),
        (torch.zeros(6), "got torch.float32"),
        (torch.zeros(6, 10, dtype=torch.int64), r"\[6, 10\]"),
    ],
)
def test_wrong_labels_are_refused(mixer: HandCraftedMixer, labels: Tensor, complaint: str) -> None:
    """Labels that do not belong to the batch are refused by value."""
    with pytest.raises(BadBatch, match=complaint):
        mixer.mix(pictures(), labels, seed=0)
