"""Learned mixing in place of Mixup: what every adapter promises, and those of timm and torchvision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import lively_mixer
from serving import serve
from timm.data.mixup import Mixup as TimmMixup
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from samix.adapters.soft_mixing import SoftMixing
from samix.adapters.targets import mixed_targets, soft_targets
from samix.adapters.timm import Mixup
from samix.adapters.torchvision import LearnedMix
from samix.client.config import ClientConfig
from samix.client.remote import connect
from samix.errors import BadBatch, ConfigError, MixerError
from samix.mixing.frozen import FrozenMixer
from samix.mixing.policies import hand_crafted
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def mixer() -> FrozenMixer:
    return lively_mixer()


def pixels(size: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def labels(size: int = 6) -> Tensor:
    return torch.arange(size) % NUM_CLASSES


def normalised(images: Tensor) -> Tensor:
    return v2.functional.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))


def train(mixup_fn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
    """Train for two steps, as a loop does that was written for timm."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(NUM_CLASSES))
    optimiser, loss_fn = torch.optim.SGD(model.parameters(), lr=0.01), torch.nn.CrossEntropyLoss()
    loss = torch.zeros(())
    for step in range(2):
        x, target = normalised(pixels(seed=step)), labels()
        x, target = mixup_fn(x, target)
        loss = loss_fn(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


@pytest.mark.parametrize("is_ours", [False, True], ids=["timm", "ours"])
def test_a_loop_written_for_timm_trains_with_either(mixer: FrozenMixer, is_ours: bool):
    """Only the line of the constructor differs between timm's Mixup and ours."""
    theirs = TimmMixup(prob=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES)
    ours = Mixup(mixer, prob=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES, seed=0)

    loss = train(ours if is_ours else theirs)

    assert 0 < loss < 10


def test_timm_targets_are_the_same_where_nothing_is_mixed(mixer: FrozenMixer):
    """With `mixup_enabled` set to False images pass as they are and targets are timm's."""
    theirs, ours = TimmMixup(num_classes=NUM_CLASSES), Mixup(mixer, num_classes=NUM_CLASSES, seed=0)
    theirs.mixup_enabled = ours.mixup_enabled = False
    x = normalised(pixels())

    expected_x, expected = theirs(x.clone(), labels())
    got_x, got = ours(x, labels())

    assert not ours.mixup_enabled
    assert torch.equal(got_x, expected_x)
    torch.testing.assert_close(got, expected)


def test_normalised_images_mix_like_the_pixels_they_came_from(mixer: FrozenMixer):
    """The mixer sees pixels in [0, 1], and the loop gets back what it would have normalised itself."""
    plain = Mixup(mixer, num_classes=NUM_CLASSES, seed=3, normalised=False)
    undoing = Mixup(mixer, num_classes=NUM_CLASSES, seed=3)
    images = pixels()

    expected, expected_targets = plain(images, labels())
    got, targets = undoing(normalised(images), labels())

    torch.testing.assert_close(got, normalised(expected), rtol=0, atol=1e-3)  # masks follow the last bits
    assert torch.equal(targets, expected_targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_that_are_not_mixed_come_back(dtype: torch.dtype):
    """Undoing and redoing a normalisation changes a pixel by rounding alone, and keeps its dtype."""
    mixing = Mixup(hand_crafted("none"), num_classes=NUM_CLASSES, seed=0)
    images = normalised(torch.rand(6, 3, 16, 16).round(decimals=1)).to(dtype)

    got, _ = mixing(images, labels())

    assert got.dtype == dtype
    torch.testing.assert_close(got, images, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (pixels() * 255, r"must lie in \[0, 1\], got .*; give the values"),
        (torch.full((6, 3, 8, 8), torch.nan), "got nan to nan"),
        (torch.zeros(6, 3, 8, 8, dtype=torch.uint8), "floating point, got torch.uint8"),
    ],
    ids=["not normalised", "nan", "uint8"],
)
def test_images_that_were_normalised_otherwise_are_refused(mixer: FrozenMixer, images: Tensor, told: str):
    """Pixels that no picture has are refused with the range and the cure."""
    with pytest.raises(BadBatch, match=told):
        Mixup(mixer, num_classes=NUM_CLASSES, seed=0)(images, labels())


def test_noise_that_was_written_into_pictures_passes_with_clamp(mixer: FrozenMixer):
    """With `clamp` the noise of RandomErasing is taken for the nearest pixels that a picture has."""
    images = normalised(pixels())
    images[0, :, :4, :4] = 5.0

    got, _ = Mixup(mixer, num_classes=NUM_CLASSES, seed=0, clamp=True)(images, labels())

    assert got.max() <= normalised(torch.ones(1, 3, 1, 1)).max() + 1e-5


def test_a_batch_may_be_odd_and_of_uint8(mixer: FrozenMixer):
    """Odd batches are mixed, bytes come back as floats in [0, 1], and what went in is left alone."""
    images = pixels(5).mul(255).byte()
    before = images.clone()

    got, targets = SoftMixing(mixer, num_classes=NUM_CLASSES, seed=0).mix(images, labels(5))

    assert got.dtype == torch.float32
    assert 0 <= got.min() < got.max() <= 1
    assert not torch.allclose(got, images / 255)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(5))
    assert torch.equal(images, before)


def test_a_resumed_run_draws_what_the_first_would_have(mixer: FrozenMixer):
    """The same seed mixes the same, batch for batch, and the state goes on where it was taken."""
    first, again = (SoftMixing(mixer, num_classes=NUM_CLASSES, seed=9, prob=0.8, alpha=0.5) for _ in range(2))
    batches = [(pixels(seed=number), labels()) for number in range(4)]
    expected = [first.mix(*batch) for batch in batches[:2]]
    state = first.state_dict()
    expected += [first.mix(*batch) for batch in batches[2:]]

    again.load_state_dict(state)
    resumed = [again.mix(*batch) for batch in batches[2:]]

    for (images, targets), (other_images, other_targets) in zip(expected[2:], resumed, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)
    assert not torch.equal(expected[0][1], expected[1][1])


def test_each_rank_draws_its_own_and_resumes_from_one_state(mixer: FrozenMixer):
    """Ranks with one seed mix differently, and all go on from the checkpoint that one of them wrote."""
    ranks = [Mixup(mixer, num_classes=NUM_CLASSES, seed=9, rank=rank, normalised=False) for rank in range(2)]

    (_, first), (_, second) = (mix(pixels(), labels()) for mix in ranks)
    ranks[1].load_state_dict(ranks[0].state_dict())

    assert not torch.equal(first, second)
    assert ranks[1].drawn == 1


def test_a_state_of_another_seed_is_refused(mixer: FrozenMixer):
    """A checkpoint of a run with another seed is refused with both seeds."""
    mixing = SoftMixing(mixer, num_classes=NUM_CLASSES, seed=1)

    with pytest.raises(ConfigError, match="seed 2, got 1"):
        mixing.load_state_dict({"seed": 2, "drawn": 5})


def test_a_share_of_the_batches_is_mixed():
    """`prob` is the share of the batches that are mixed; the others pass as they are."""
    mixing = SoftMixing(hand_crafted("mixup"), num_classes=NUM_CLASSES, seed=0, prob=0.5)

    mixed = [not torch.equal(mixing.mix(pixels(), labels())[0], pixels()) for _ in range(60)]

    assert 15 < sum(mixed) < 45


def test_a_server_mixes_like_this_process(mixer: FrozenMixer):
    """The constructor takes a remote mixer as it takes a local one, for the same batches."""
    local = Mixup(mixer, num_classes=NUM_CLASSES, seed=4)
    x = normalised(pixels())
    with serve(mixer) as server, connect(server.addresses["grpc"]) as remote:
        got, targets = Mixup(remote, num_classes=NUM_CLASSES, seed=4)(x, labels())
        expected, expected_targets = local(x, labels())

    torch.testing.assert_close(got, expected, rtol=0, atol=5e-3)
    assert torch.equal(targets, expected_targets)


def test_a_server_that_is_gone_is_the_loops_to_handle():
    """An adapter lets the mixer's error out, and does not count the batch."""
    with connect("127.0.0.1:1", config=ClientConfig(deadline_s=0.2)) as gone:
        mixing = SoftMixing(gone, num_classes=NUM_CLASSES, seed=0)

        with pytest.raises(MixerError):
            mixing.mix(pixels(), labels())

    assert mixing.drawn == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prob": 1.5}, "prob must lie in"),
        ({"label_smoothing": -0.1}, "label_smoothing must lie in"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"mean": IMAGENET_MEAN}, "leave out both or none"),
        ({"mean": (0.5,), "std": (0.5,)}, "three channels"),
        ({"mean": IMAGENET_MEAN, "std": (1, 0, 1)}, "std must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(mixer: FrozenMixer, settings: dict[str, Any], told: str):
    """A wrong setting is refused when it is written, with its value."""
    with pytest.raises(ConfigError, match=told):
        SoftMixing(mixer, **{"num_classes": NUM_CLASSES, "seed": 0, **settings})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.tensor([0, 1, 5, 0, 0, 0]), r"0\.\.4, got 0 to 5"),
        (torch.tensor([0, 1, -1, 0, 0, 0]), r"0\.\.4, got -1 to 1"),
        (torch.zeros(6, 1), "integers"),
        (torch.zeros(6, 4), "integers"),
    ],
)
def test_labels_of_no_class_are_refused(mixer: FrozenMixer, wrong: Tensor, told: str):
    """Labels outside the classes, or of another shape, are refused before anything is mixed."""
    with pytest.raises(BadBatch, match=told):
        SoftMixing(mixer, num_classes=NUM_CLASSES, seed=0).mix(pixels(), wrong)


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_labels_of_other_images_are_refused(mixer: FrozenMixer, size: int, prob: float):
    """A batch with more or fewer labels than images is refused with both shapes, mixed or not."""
    with pytest.raises(BadBatch, match=rf"images \[{size}, 3, 16, 16\] and labels \[5\]"):
        SoftMixing(mixer, num_classes=NUM_CLASSES, seed=0, prob=prob).mix(pixels(size), labels(5))


def test_what_is_no_tensor_is_refused(mixer: FrozenMixer):
    """Labels in a list are refused with their type and the cure."""
    with pytest.raises(BadBatch, match="labels must be a tensor, got list; mix batches that were collated"):
        Mixup(mixer, num_classes=NUM_CLASSES, seed=0)(pixels(), [0, 1, 2, 3, 4, 0])  # pyright: ignore


@given(
    classes=st.lists(st.integers(0, NUM_CLASSES - 1), min_size=1, max_size=6),
    lam=st.floats(0, 1),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_targets_are_shares_of_both_labels(classes: list[int], lam: float, smoothing: float, seed: int):
    """A target has lam of its own class and the rest of its partner's, after smoothing, and sums to one."""
    partner = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    own = torch.tensor(classes)

    targets = mixed_targets(soft_targets(own, NUM_CLASSES, smoothing), partner, torch.full((len(classes),), lam))

    expected = torch.full((len(classes), NUM_CLASSES), smoothing / NUM_CLASSES)
    for row, (mine, other) in enumerate(zip(own.tolist(), own[partner].tolist(), strict=True)):
        expected[row, mine] += (1 - smoothing) * lam
        expected[row, other] += (1 - smoothing) * (1 - lam)
    torch.testing.assert_close(targets, expected)


def test_a_transform_stands_beside_those_of_torchvision(mixer: FrozenMixer):
    """LearnedMix is called as v2.MixUp, by itself, with a pair, and in a RandomChoice."""
    mix = LearnedMix(mixer, num_classes=NUM_CLASSES, seed=0)
    choice = v2.RandomChoice([mix, v2.CutMix(num_classes=NUM_CLASSES)], p=[1.0, 0.0])

    answers = [mix(pixels(), labels()), mix((pixels(), labels())), choice(pixels(), labels())]

    assert mix.drawn == 3
    for images, targets in answers:
        assert images.shape == (6, 3, 16, 16)
        assert targets.shape == (6, NUM_CLASSES)


def test_labels_that_are_soft_already_are_mixed(mixer: FrozenMixer):
    """Shares of classes are mixed like the one-hot labels they equal."""
    hard, soft = (LearnedMix(mixer, num_classes=NUM_CLASSES, seed=0) for _ in range(2))

    expected = hard(pixels(), labels())[1]
    got = soft(pixels(), torch.eye(NUM_CLASSES)[labels()])[1]

    assert torch.equal(got, expected)


def test_a_transform_refuses_what_is_no_batch(mixer: FrozenMixer):
    """A single picture, or a batch that was not collated, is refused with what was given."""
    mix = LearnedMix(mixer, num_classes=NUM_CLASSES, seed=0)

    with pytest.raises(BadBatch, match=r"got \(Tensor, int\)"):
        mix(pixels()[0], 3)  # pyright: ignore


def test_workers_draw_differently_and_repeat():
    """Copies in loader workers mix differently from each other, and alike when the loader's generator is the same."""

    def targets_of_epoch() -> Tensor:
        mix = LearnedMix(hand_crafted("mixup"), num_classes=NUM_CLASSES, seed=0)
        samples = TensorDataset(pixels(12), labels(12))
        loader = DataLoader(
            samples,
            6,
            num_workers=2,
            generator=torch.Generator().manual_seed(1),
            collate_fn=lambda batch: mix(*torch.utils.data.default_collate(batch)),
        )
        return torch.stack([targets.sort(dim=1).values[:, -1].max() for _, targets in loader])

    shares, again = targets_of_epoch(), targets_of_epoch()

    assert torch.equal(shares, again)
    assert shares[0] != shares[1]
