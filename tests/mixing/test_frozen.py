"""The frozen mixer: a pure function of images, plan and weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from samix.errors import BadBatch, ConfigError
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.plan import generator_for, resolve_plan
from samix.mixing.presets import tiny_spec
from samix.mixing.render import LOGIT_LIMIT


@pytest.fixture(scope="module")
def mixer() -> FrozenMixer:
    return random_mixer(tiny_spec(), seed=0, name="tiny")


def pictures(batch_size: int = 6, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)


def plan_of(batch_size: int = 6) -> MixPlan:
    return MixPlan(lam=torch.linspace(0.1, 0.9, batch_size), partner=torch.arange(batch_size).roll(1))


def test_it_neither_learns_nor_drifts(mixer: FrozenMixer) -> None:
    """The network evaluates, wants no gradient, and mixing leaves its batch-norm statistics as they were."""
    before = {key: value.clone() for key, value in mixer.net.state_dict().items()}

    mixer.mix(pictures(), seed=0)

    assert not any(module.training for module in mixer.net.modules())
    assert not any(parameter.requires_grad for parameter in mixer.net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in mixer.net.state_dict().items())


def test_logits_are_those_of_the_features(mixer: FrozenMixer) -> None:
    """32 px give 8 x 8 float32 logits, bounded, and different for different pairs."""
    logits = mixer.mask_logits(pictures(), plan_of())

    assert logits.shape == (6, 1, 8, 8)
    assert logits.dtype == torch.float32
    assert (logits.abs() <= LOGIT_LIMIT).all()
    assert len(logits.flatten(1).unique(dim=0)) == 6


def test_rows_do_not_depend_on_their_batch(mixer: FrozenMixer) -> None:
    """A pair gets the same logits within 1e-5 alone as among others."""
    images, plan = pictures(), plan_of()

    together = mixer.mask_logits(images, plan)

    for row, other in enumerate(plan.partner.tolist()):
        alone = MixPlan(lam=plan.lam[[row, other]], partner=torch.tensor([1, 0]))
        logits = mixer.mask_logits(images[[row, other]], alone)
        torch.testing.assert_close(logits[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_and_bytes_are_the_same_image(mixer: FrozenMixer, dtype: torch.dtype) -> None:
    """uint8 0..255 and float 0..1 of the same picture give the same mix."""
    images = pictures()

    from_bytes = mixer.mix(images, seed=4)
    from_floats = mixer.mix(images.to(dtype) / 255, seed=4)

    torch.testing.assert_close(from_floats.images, from_bytes.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(from_floats.masks, from_bytes.masks, atol=1e-6, rtol=0)


def test_a_mix_is_the_blend_of_its_masks(mixer: FrozenMixer) -> None:
    """Images are masks * x + (1 - masks) * partner in [0, 1]; lam is the plan's, labels are paired."""
    images, labels = pictures(), torch.arange(6)

    mixed = mixer.mix(images, labels, lam=0.35, partner=labels.roll(1))

    x = images.float() / 255
    torch.testing.assert_close(mixed.images, mixed.masks * x + (1 - mixed.masks) * x.roll(1, 0))
    assert mixed.masks.shape == (6, 1, 32, 32)
    assert mixed.lam.tolist() == pytest.approx([0.35] * 6)
    assert mixed.labels_a is labels
    assert mixed.labels_b is not None
    assert torch.equal(mixed.labels_b, labels.roll(1))


@pytest.mark.parametrize("size", [(8, 8), (17, 33), (64, 64), (40, 31)])
def test_other_sizes_than_the_trained_one_are_mixed(mixer: FrozenMixer, size: tuple[int, int]) -> None:
    """Any size within the limits gives masks of that size."""
    mixed = mixer.mix(pictures(3, *size), seed=1)

    assert mixed.masks.shape == (3, 1, *size)
    assert mixed.images.isfinite().all()


def test_a_seed_draws_the_documented_plan(mixer: FrozenMixer) -> None:
    """mix(seed) mixes with the plan that generator_for(seed) draws, so a client may draw it itself."""
    plan = resolve_plan(6, lam=None, partner=None, generator=generator_for(9))

    mixed = mixer.mix(pictures(), seed=9)

    assert torch.equal(mixed.images, mixer.mix(pictures(), lam=plan.lam, partner=plan.partner).images)


def test_a_stream_is_ordered_lazy_and_seeded_by_position(mixer: FrozenMixer) -> None:
    """Batch i of a stream draws from (seed, i), and no batch is read before it is asked for."""
    read: list[int] = []

    def batches():
        for number in range(3):
            read.append(number)
            yield pictures(), torch.full((6,), number)

    stream = mixer.stream(batches(), seed=3)
    first = next(stream)
    read_by_then = list(read)
    second = next(stream)

    plan = resolve_plan(6, lam=None, partner=None, generator=generator_for(3, 1))
    assert read_by_then == [0]
    assert first.labels_a is not None
    assert first.labels_a.tolist() == [0] * 6
    assert torch.equal(second.lam, plan.lam)
    assert not torch.equal(first.lam, second.lam)


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_a_mix_may_meet_autograd(mixer: FrozenMixer, lam: float) -> None:
    """Mixed images and masks can be trained on: none is an inference tensor, and gradients reach the images."""
    images = (pictures() / 255).requires_grad_()

    mixed = mixer.mix(images, lam=lam, partner=torch.arange(6).roll(1))
    (mixed.images * mixed.masks).sum().backward()

    assert not mixed.images.is_inference()
    assert not mixed.masks.is_inference()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_random_mixers_are_functions_of_their_seed() -> None:
    """Equal seeds make equal weights and versions, others do not, and the global random state is left alone."""
    state = torch.get_rng_state()

    one, again, other = (random_mixer(tiny_spec(), seed=seed, name="tiny") for seed in (1, 1, 2))

    assert one.sha256 == again.sha256 != other.sha256
    assert one.version == one.sha256[:12]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ((7, 32), r"images are 7 x 32, this mixer takes sides of 8 to 1024 pixels"),
        ((8, 1032), r"images are 8 x 1032"),
        ((256, 256), r"256 x 256 make 4096 tokens, this mixer takes 1024; resize"),
    ],
)
def test_sizes_beyond_the_limits_are_refused(mixer: FrozenMixer, size: tuple[int, int], complaint: str) -> None:
    """Images out of the spec's limits are refused, by size and limit, before the encoder runs."""
    with pytest.raises(BadBatch, match=complaint):
        mixer.mix(torch.zeros(1, 3, *size, dtype=torch.uint8), seed=0)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (torch.zeros(2, 4, 32, 32), None, r"got \[2, 4, 32, 32\]"),
        (torch.full((2, 3, 32, 32), -2.1), None, r"got -2\.0999.*; normalise after mixing"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(3, dtype=torch.int64), r"labels must be int64 \[2\]"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_wrong_batches_are_refused(
    mixer: FrozenMixer, images: Tensor, labels: Tensor | None, complaint: str, streamed: bool
) -> None:
    """A batch that cannot be mixed is refused by value, in a stream too."""
    with pytest.raises(BadBatch, match=complaint):
        _ = list(mixer.stream([(images, labels)], seed=0)) if streamed else mixer.mix(images, labels, seed=0)


def test_a_mix_without_a_seed_is_refused(mixer: FrozenMixer) -> None:
    """What would be drawn needs a seed."""
    with pytest.raises(BadBatch, match="give seed="):
        mixer.mix(pictures(), lam=0.5)


def test_a_device_that_is_not_there_is_refused() -> None:
    """A mistyped device is refused by name."""
    with pytest.raises(ConfigError, match="device 'gpu0' cannot be used here"):
        random_mixer(tiny_spec(), seed=0, name="tiny", device="gpu0")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"std": (0.5, 0.0, 0.5)}, "std in 1e-6"),
        ({"mean": (0.5, float("nan"), 0.5)}, r"mean must lie in \+-1e6"),
        ({"stride": 0}, r"stride must lie in 1\.\.65536, got 0"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"min_side": 64, "max_side": 32}, "got 64 and 32"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, complaint: str) -> None:
    """A mixer's settings are checked when they are written."""
    with pytest.raises(ConfigError, match=complaint):
        replace(tiny_spec(), **settings)
