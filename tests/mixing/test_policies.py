"""What holds for every hand-crafted policy, and what Mixup, CutMix and no mixing do."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samix.errors import BadBatch, ConfigError
from samix.mixing.policies import (
    HandCraftedMixer,
    PolicyName,
    cutmix,
    fmix,
    hand_crafted,
    mixup,
    no_mixing,
    puzzlemix,
    resizemix,
    saliencymix,
    usual_alpha,
)
from samix.mixing.policies.puzzlemix import PuzzleSettings

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
POLICIES = {name: hand_crafted(name) for name in NAMES}
BLENDS = {name: POLICIES[name] for name in NAMES if name not in ("resizemix", "puzzlemix")}
BLENDS["puzzlemix in place"] = puzzlemix(settings=PuzzleSettings(moves_cells=False))
BLENDS["soft fmix"] = fmix(max_soft=0.2)
DRAWING = ("cutmix", "fmix", "resizemix", "puzzlemix")

every_policy = pytest.mark.parametrize("mixer", POLICIES.values(), ids=POLICIES.keys())
every_blend = pytest.mark.parametrize("mixer", BLENDS.values(), ids=BLENDS.keys())


def pictures(batch_size: int = 6, height: int = 12, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)


@every_blend
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


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 2**32),
    batch_size=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    lam=st.one_of(st.floats(0, 1), st.none()),
)
def test_masks_show_the_lam_that_is_reported(
    name: PolicyName, seed: int, batch_size: int, height: int, width: int, lam: float | None
) -> None:
    """Of any size and lam, masks and pixels lie in [0, 1], and lam is the share of image i that the masks show."""
    shares = None if lam is None else torch.linspace(lam, 1, batch_size)

    mixed = POLICIES[name].mix(pictures(batch_size, height, width), seed=seed, lam=shares)

    assert mixed.masks.shape == (batch_size, 1, height, width)
    assert mixed.images.shape == (batch_size, 3, height, width)
    assert 0 <= mixed.masks.min() <= mixed.masks.max() <= 1
    assert 0 <= mixed.images.min() <= mixed.images.max() <= 1
    torch.testing.assert_close(mixed.lam, mixed.masks.mean(dim=(1, 2, 3)))
    assert mixed.images.dtype == mixed.masks.dtype == mixed.lam.dtype == torch.float32


@every_policy
def test_pairs_and_their_labels_are_the_callers(mixer: HandCraftedMixer) -> None:
    """labels_a are the labels given and labels_b those of the partners given."""
    partner = torch.tensor([1, 2, 3, 4, 5, 0])

    mixed = mixer.mix(pictures(), torch.arange(6), seed=3, partner=partner)

    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    assert mixed.labels_a.tolist() == list(range(6))
    assert mixed.labels_b.tolist() == (list(range(6)) if mixer is POLICIES["none"] else partner.tolist())


@every_policy
@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_at_the_ends_one_image_is_left(mixer: HandCraftedMixer, lam: float) -> None:
    """lam = 1 gives the image itself; lam = 0 its partner, but for the edge that a clipped box does not reach."""
    images, partner = pictures(4, 16, 24).float() / 255, torch.tensor([1, 2, 3, 0])

    mixed = mixer.mix(images, seed=2, lam=lam, partner=partner)

    expected = images if lam == 1 or mixer is POLICIES["none"] else images[partner]
    is_boxed = lam == 0 and mixer in (POLICIES["cutmix"], POLICIES["saliencymix"])
    shown = (1 - mixed.masks) if is_boxed else torch.ones_like(mixed.masks)
    torch.testing.assert_close(mixed.images * shown, expected * shown)
    assert shown.mean() > 0.25
    assert is_boxed or (mixed.lam == (1.0 if mixer is POLICIES["none"] else lam)).all()


@pytest.mark.parametrize("name", ["cutmix", "fmix", "resizemix"])
def test_one_lam_is_one_draw_and_else_there_is_one_for_each(name: PolicyName) -> None:
    """Pairs of equal lam share the box or mask that is drawn, as published; one lam for each is a draw for each."""
    images = pictures(1, 32, 32).expand(4, -1, -1, -1)  # so that only what is drawn can differ

    one = POLICIES[name].mix(images, seed=1, lam=0.5).masks
    each = POLICIES[name].mix(images, seed=1, lam=torch.tensor([0.5, 0.3, 0.7, 0.4])).masks

    assert len(one.flatten(1).unique(dim=0)) == 1
    assert len(each.flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("name", DRAWING)
def test_a_policy_that_draws_refuses_to_without_a_seed(name: PolicyName) -> None:
    """What draws more than lam and partner needs a seed beside them, so that the mix can be repeated."""
    with pytest.raises(BadBatch, match=r"draws .*: give seed=, also beside lam= and partner="):
        POLICIES[name].mix(pictures(2), lam=0.5, partner=torch.tensor([1, 0]))


@pytest.mark.parametrize("name", ["none", "mixup", "saliencymix"])
def test_a_policy_that_draws_nothing_needs_no_seed(name: PolicyName) -> None:
    """With lam and partner given, Mixup and SaliencyMix are functions of the images."""
    first, again = (POLICIES[name].mix(pictures(2), lam=0.5, partner=torch.tensor([1, 0])) for _ in range(2))

    assert torch.equal(first.images, again.images)


def test_autocast_does_not_change_a_mix() -> None:
    """A mix is the same bits inside the autocast region of a training step."""
    images = pictures(4, 32, 32)
    for mixer in POLICIES.values():
        plain = mixer.mix(images, seed=4)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = mixer.mix(images, seed=4)

        assert torch.equal(plain.images, inside.images)
        assert torch.equal(plain.lam, inside.lam)


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


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("policy", [mixup, cutmix, saliencymix, fmix, resizemix, puzzlemix])
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


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_made_by_its_name(name: PolicyName) -> None:
    """hand_crafted takes the usual alpha where none is given; `none` needs none."""
    usual, given = hand_crafted(name), hand_crafted(name, 0.3)

    assert usual.alpha == (None if name == "none" else usual_alpha(name))
    assert given.alpha == (None if name == "none" else 0.3)


def test_an_unknown_policy_is_refused() -> None:
    """A wrong name is refused with the names there are, whether alpha is given or not."""
    for alpha in (None, 0.5):
        with pytest.raises(ConfigError, match="no policy 'cutmux'; take one of none, mixup, cutmix"):
            hand_crafted("cutmux", alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["none", "mixup", "cutmix", "fmix", "resizemix"])
def test_a_saliency_that_would_not_be_used_is_refused(name: PolicyName) -> None:
    """Only SaliencyMix and PuzzleMix take a saliency."""
    with pytest.raises(ConfigError, match=f"'{name}' uses no saliency; leave it out, or take saliencymix or puzzlemix"):
        hand_crafted(name, saliency=lambda images, _labels: images[:, 0])
