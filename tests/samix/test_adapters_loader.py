"""A loader whose batches arrive mixed, several of them under way."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scripted_server import lively_mixer
from serving import serve
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from samix.adapters.loader import MixedLoader
from samix.adapters.targets import mixed_targets, soft_targets
from samix.client.config import ClientConfig
from samix.client.remote import connect
from samix.errors import BadBatch, ConfigError, MixerError
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import derive_seed
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def mixer() -> FrozenMixer:
    return lively_mixer()


@pytest.fixture
def loader() -> DataLoader:
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(12) % NUM_CLASSES), 4)


def test_a_loader_yields_what_the_stream_mixes(mixer: FrozenMixer, loader: DataLoader):
    """Images are those of `mixer.stream`, and targets are its labels and lam as shares."""
    mixed = MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=2)

    answers = list(mixed)

    assert len(mixed) == len(answers) == 3
    streamed = mixer.stream(((images, labels) for images, labels in loader), seed=derive_seed(2, 0, 0))
    for (images, targets), expected in zip(answers, streamed, strict=True):
        assert expected.labels_a is not None
        assert expected.labels_b is not None
        assert torch.equal(images, expected.images)
        shares = expected.lam[:, None] * soft_targets(expected.labels_a, NUM_CLASSES)
        shares += (1 - expected.lam[:, None]) * soft_targets(expected.labels_b, NUM_CLASSES)
        torch.testing.assert_close(targets, shares)


def test_epochs_differ_and_can_be_resumed(mixer: FrozenMixer, loader: DataLoader):
    """Each epoch has draws of its own, and a checkpoint between epochs goes on with the next one."""
    mixed = MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=2)
    first, state, second = list(mixed), mixed.state_dict(), list(mixed)
    resumed = MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=2)

    resumed.load_state_dict(state)

    assert not torch.equal(first[0][0], second[0][0])
    assert all(torch.equal(a, b) for a, b in zip(next(iter(resumed)), second[0], strict=True))
    with pytest.raises(ConfigError, match="seed 2, got 3"):
        MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=3).load_state_dict(state)


def test_a_remote_mixer_works_ahead(mixer: FrozenMixer):
    """While the loop has its first batch, `depth` others are under way; all of them arrive in order."""
    num_read = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal num_read
        for number in range(6):
            num_read += 1
            yield torch.full((2, 3, 16, 16), number / 10), torch.full((2,), number % NUM_CLASSES)

    with serve(mixer) as server, connect(server.addresses["grpc"]) as remote:
        mixed = iter(MixedLoader(remote, batches(), num_classes=NUM_CLASSES, seed=0, depth=3))
        firsts = [next(mixed)[0][0, 0, 0, 0].item()]
        num_read_ahead = num_read
        firsts += [images[0, 0, 0, 0].item() for images, _ in mixed]

    assert num_read_ahead == 1 + 3
    assert firsts == pytest.approx([number / 10 for number in range(6)], abs=1e-6)


def test_normalised_batches_come_back_normalised(mixer: FrozenMixer, loader: DataLoader):
    """With mean and std, batches that were normalised are mixed as the pixels they came from."""
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
    normalised = [((images - mean) / std, labels) for images, labels in loader]

    plain = MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=2)
    undoing = MixedLoader(mixer, normalised, num_classes=NUM_CLASSES, seed=2, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    for (expected, _), (images, _) in zip(plain, undoing, strict=True):
        torch.testing.assert_close(images, (expected - mean) / std, rtol=0, atol=1e-3)


def test_a_wrong_label_ends_the_epoch(mixer: FrozenMixer, loader: DataLoader):
    """A label of no class is refused with the classes there are."""
    with pytest.raises(BadBatch, match=r"0\.\.1, got 0 to 3"):
        list(MixedLoader(mixer, loader, num_classes=2, seed=0))


@pytest.mark.parametrize("settings", [{"num_classes": 0}, {"label_smoothing": 1.5}], ids=str)
def test_settings_that_cannot_work_are_refused(mixer: FrozenMixer, loader: DataLoader, settings: dict[str, Any]):
    """A wrong setting is refused when it is written, not in the first batch."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        MixedLoader(mixer, loader, **{"num_classes": NUM_CLASSES, "seed": 0, **settings})


def test_ranks_draw_differently(mixer: FrozenMixer, loader: DataLoader):
    """Ranks with one seed mix the same batches differently."""
    first, second = (MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=2, rank=rank) for rank in range(2))

    assert not torch.equal(next(iter(first))[1], next(iter(second))[1])


def test_a_server_that_is_gone_ends_the_epoch(loader: DataLoader):
    """The mixer's error comes out of the loop that iterates."""
    with connect("127.0.0.1:1", config=ClientConfig(deadline_s=0.2)) as gone, pytest.raises(MixerError):
        list(MixedLoader(gone, loader, num_classes=NUM_CLASSES, seed=0))


def test_shares_of_labels_that_are_soft_already_are_mixed(mixer: FrozenMixer, loader: DataLoader):
    """Soft labels of the wrapped loader are mixed like the integers they equal."""
    soft = [(images, soft_targets(labels, NUM_CLASSES)) for images, labels in loader]

    hard_targets = [targets for _, targets in MixedLoader(mixer, loader, num_classes=NUM_CLASSES, seed=0)]
    soft_mixed = [targets for _, targets in MixedLoader(mixer, soft, num_classes=NUM_CLASSES, seed=0)]

    assert all(torch.equal(a, b) for a, b in zip(hard_targets, soft_mixed, strict=True))
    assert mixed_targets(torch.eye(2), torch.tensor([1, 0]), torch.tensor([1.0, 0.5])).tolist() == [[1, 0], [0.5, 0.5]]
