"""Figures that tell a trivial mixer from one that learnt something."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import tiny_mixer
from torch import Tensor
from training import digit_pictures

from samix.mixing.artefact import load_mixer
from samix.mixing.batch import MixPlan
from samix.mixing.plan import generator_for
from samix.mixing.policies import cutmix, mixup, no_mixing
from samix.mixing.render import Rendering, render_masks
from trainer.pairs import mix_pairs
from trainer.quality import mask_quality, masks_over

ROOT = Path(__file__).parents[2]


def pictures(count: int, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator_for(count))


@given(lams=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=4, unique=True))
def test_mixup_is_exact_and_trivial(lams: list[float]):
    """Constant masks have lam for their mean, no spread, and no deviation between pictures."""
    quality = mask_quality(mixup(), pictures(4, side=4), seed=0, lams=lams)

    assert quality.mean == pytest.approx(lams, abs=1e-6)
    assert quality.error == pytest.approx([0] * len(lams), abs=1e-6)
    assert quality.spread == pytest.approx([0] * len(lams), abs=1e-6)
    assert quality.mean_deviation == pytest.approx([0] * len(lams), abs=1e-6)
    assert quality.is_trivial


def test_a_constant_that_ignores_lam_is_told_from_mixup():
    """Both are trivial; only the mean of Mixup's masks follows lambda."""
    followed, ignored = (mask_quality(mixer, pictures(4), seed=0) for mixer in (mixup(), no_mixing()))

    assert followed.is_trivial
    assert ignored.is_trivial
    assert (followed.ignores_lam, ignored.ignores_lam) == (False, True)


def test_boxes_are_not_trivial():
    """CutMix's masks vary over the picture and between pictures, and follow lambda although boxes are clipped."""
    quality = mask_quality(cutmix(), pictures(64), seed=0)

    assert not quality.is_trivial
    assert not quality.ignores_lam
    assert 0.35 < quality.mean_spread <= 0.52
    assert min(quality.mean_deviation) > 0.01
    assert min(quality.spread_deviation) > 0.01


def test_a_trained_mixer_is_told_from_a_random_one():
    """The shipped mixer is neither trivial nor deaf to lambda, a random one is both."""
    trained = mask_quality(load_mixer(ROOT / "mixers/samix-digits-r10.safetensors"), digit_pictures(16, 16), seed=0)
    random = mask_quality(tiny_mixer(), pictures(16), seed=0)

    assert (trained.is_trivial, trained.ignores_lam) == (False, False)
    assert (random.is_trivial, random.ignores_lam) == (True, True)
    assert (random.error[0], random.error[-1]) == pytest.approx((0.4, 0.4), abs=0.02)  # masks of 0.5, lam 0.1 and 0.9


def test_learned_masks_are_those_before_the_margin():
    """More pictures than go through the network at once get the masks of one pass, learned also at lambda 0.05."""
    mixer, images = tiny_mixer(), pictures(35)
    partner = torch.randperm(35, generator=generator_for(1))
    plan = MixPlan(lam=torch.full((35,), 0.05), partner=partner)
    learned = Rendering(upsampling="bilinear", lam_margin=0.0)

    (masks,) = masks_over(mixer, images, partner, [0.05], seed=0)

    with torch.inference_mode():
        expected = render_masks(mixer.mask_logits(images, plan), plan.lam, (16, 16), learned)
    assert mixer.spec.rendering.lam_margin > 0.05
    torch.testing.assert_close(masks, expected)


def test_a_pair_is_mixed_alike_in_any_company():
    """What a policy draws for a pair does not depend on the pairs after it."""
    left, right = pictures(10).chunk(2)

    few, many = (mix_pairs(cutmix(), left[:n], right[:n], 0.5, seed=3) for n in (2, 5))

    assert torch.equal(few.images, many.images[:2])
    assert torch.equal(few.masks, many.masks[:2])
    assert len(many.masks.flatten(1).unique(dim=0)) == 5


@given(lam=st.floats(0, 1, width=32))
def test_lam_is_the_share_of_the_left_picture(lam: float):
    """Mixes of white left pictures with black right ones are as bright as lam."""
    mixed = mix_pairs(mixup(), torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), lam, seed=0)

    torch.testing.assert_close(mixed.images, torch.full((2, 3, 4, 4), lam))
    torch.testing.assert_close(mixed.lam, torch.full((2,), lam))
