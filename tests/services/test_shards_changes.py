"""RandAugment, colour jitter and random erasing: what they do, and that they depend on their generator alone."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from shard_making import noise

from services.shards.changes import ColourJitter, RandomErasing
from services.shards.rand_augment import RandAugment, is_policy

DEIT = RandAugment(policy="rand-m9-mstd0.5-inc1", interpolation="bicubic")
CHANGES = [DEIT, ColourJitter(strength=0.4), RandomErasing(probability=1.0)]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("change", CHANGES, ids=["rand_augment", "colour_jitter", "erasing"])
def test_a_change_depends_on_its_generator_only(change):
    """Equal generators give equal pixels whatever the global generators say and were asked in between."""
    pixels = noise(1, 32, 32)
    random.seed(1)
    np.random.seed(1)
    first = [change(pixels, generator(seed)) for seed in range(20)]

    random.seed(2)
    np.random.seed(2)
    second = [change(pixels, generator(seed)) for seed in reversed(range(20))]

    assert all(np.array_equal(one, other) for one, other in zip(first, reversed(second), strict=True))
    assert len({view.tobytes() for view in first}) > 10


def test_rand_augment_leaves_the_global_generators_where_they_were():
    """A program that draws from Python's or numpy's global generator is not disturbed."""
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)

    DEIT(noise(1, 32, 32), generator())

    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("change", CHANGES, ids=["rand_augment", "colour_jitter", "erasing"])
@given(seed=st.integers(0, 10_000), side=st.integers(1, 40))
def test_a_change_keeps_size_and_type(change, seed, side):
    """Any square stays uint8 [S, S, 3], and the input is left alone."""
    pixels = noise(seed, side, side)
    before = pixels.copy()

    changed = change(pixels, generator(seed))

    assert changed.shape == (side, side, 3)
    assert changed.dtype == np.uint8
    assert np.array_equal(pixels, before)


def test_rand_augment_of_magnitude_0_with_growing_operations_keeps_most_pictures_recognisable():
    """The magnitude arrives: at 0 a view is closer to its picture than at 9, on average."""
    weak = RandAugment(policy="rand-m0-inc1", interpolation="bilinear")
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3)))

    distances = [
        np.mean([np.abs(change(ramp, generator(seed)).astype(int) - ramp).mean() for seed in range(60)])
        for change in (weak, DEIT)
    ]

    assert distances[0] < distances[1]


@pytest.mark.parametrize("policy", ["rand-m10-n15-p1-inc1", "rand-m15-mmax15-n15-p1-inc1", "rand-m0-n15-p1"])
def test_no_operation_fails_at_full_magnitude(policy):
    """Every operation of timm's makes a view at its strongest, also where that leaves no bits of the picture."""
    strongest = RandAugment(policy=policy, interpolation="bilinear")

    views = [strongest(noise(seed, 16, 16), generator(seed)) for seed in range(30)]

    assert {view.shape for view in views} == {(16, 16, 3)}


@pytest.mark.parametrize("policy", ["rand", "rand-m6-mstd0.5-inc1", "rand-m9-n3-p0.5", "rand-m7-mmax12-tweights"])
def test_timms_policies_are_understood(policy):
    """What published recipes name passes the check and makes views."""
    view = RandAugment(policy=policy, interpolation="bilinear")(noise(1, 16, 16), generator())

    assert is_policy(policy)
    assert view.shape == (16, 16, 3)


@pytest.mark.parametrize(
    "text", ["randm9", "rand-m", "rand-m9.5", "rand-9", "rand-q3", "v0", "rand-", "rand-m9-w0", "rand-p2", "augmix"]
)
def test_other_policies_are_not_understood(text):
    """What timm would pass over, fail at or read as another augmentation is no policy."""
    understood = is_policy(text)

    assert not understood


def test_colour_jitter_multiplies_in_random_order():
    """A view is the picture under the three enhancements in some order, with factors within the strength."""
    change, pixels = ColourJitter(strength=0.3), noise(3, 16, 16)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    rng = generator(8)
    expected = Image.fromarray(pixels)
    for number in rng.permutation(3):
        factor = rng.uniform(0.7, 1.3)
        expected = enhancers[number](expected).enhance(factor)

    view = change(pixels, generator(8))

    assert np.array_equal(view, np.asarray(expected))
    assert not np.array_equal(view, pixels)


def test_erasing_replaces_a_rectangle_by_noise_of_the_published_size():
    """One rectangle of 2 % to a third of the view becomes noise around ImageNet's mean; the rest stays."""
    grey, change = np.zeros((64, 64, 3), np.uint8), RandomErasing(probability=1.0)

    views = np.stack([change(grey, generator(seed)) for seed in range(400)])

    erased = (views != 0).any(axis=3)
    heights, widths = erased.any(axis=2).sum(1), erased.any(axis=1).sum(1)
    shares = erased.sum((1, 2)) / 64**2
    assert shares.min() > 0.01
    assert shares.max() < 0.36
    assert shares.mean() == pytest.approx(0.17, abs=0.02)
    assert (erased.sum((1, 2)) >= 0.98 * heights * widths).all()  # noise is black in all colours now and then
    assert views[erased].mean(0) == pytest.approx([124, 116, 104], abs=2)
    assert views[erased].std(0) == pytest.approx([58, 57, 57], abs=4)


def test_erasing_happens_as_often_as_asked():
    """The share of changed views is the probability."""
    change, pixels = RandomErasing(probability=0.25), noise(2, 32, 32)

    changed = [not np.array_equal(change(pixels, generator(seed)), pixels) for seed in range(1000)]

    assert np.mean(changed) == pytest.approx(0.25, abs=0.04)
