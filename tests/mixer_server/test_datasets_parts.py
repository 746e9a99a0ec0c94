"""Parts of the dataset server by themselves: claims, memory of pictures, epochs."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from shard_making import write_noise_shards

from mixer_server.datasets.claims import Claims
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.dataset import fingerprint_of
from mixer_server.datasets.epochs import Epochs
from mixer_server.datasets.pictures import PictureMemory
from samix.errors import ConsumerTaken, DataLost, MixerError
from services.shards.decoding import DecodedSample, UnreadableSample
from services.shards.index import ShardSet, open_shards

SAMPLE = DecodedSample("key", 0, (8, 8))
SIDE = 1024
PICTURE = np.zeros((3, SIDE, SIDE), np.uint8)  # 3 MiB, as much as a block


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shards(write_noise_shards(tmp_path_factory.mktemp("noise"), [4, 4]))


def test_an_older_call_gives_back_only_its_own_claim():
    """When a call that was taken over from ends, the one that took over keeps the consumer."""
    claims, ended = Claims(), list[MixerError]()
    older = ExitStack()
    older.enter_context(claims.hold("key", 0, "me", ended.append))

    with claims.hold("key", 0, "me", ended.append):
        older.close()
        with pytest.raises(ConsumerTaken), claims.hold("key", 0, "other", ended.append):
            pass

    assert [type(error) for error in ended] == [ConsumerTaken]
    with claims.hold("key", 0, "other", ended.append):
        pass


def test_shelves_in_use_keep_their_pictures():
    """Memory is bounded: what does not fit is not kept, as long as all that is there is in use."""
    memory = PictureMemory(7 << 20)
    with memory.shelf("one", SIDE) as one, memory.shelf("two", SIDE) as two:
        kept = [one.put(0, PICTURE, SAMPLE), two.put(0, PICTURE, SAMPLE), one.put(1, PICTURE, SAMPLE)]

    assert [picture is not None for picture in kept] == [True, True, False]
    assert memory.num_bytes == 6 << 20


def test_idle_shelves_give_way():
    """Memory of a shelf that nobody uses goes to one that is in use, and not before that is needed."""
    memory = PictureMemory(7 << 20)
    with memory.shelf("one", SIDE) as one:
        one.put(0, PICTURE, SAMPLE)
    with memory.shelf("one", SIDE) as again:
        assert again.find(0)

    with memory.shelf("two", SIDE) as two:
        assert two.put(0, PICTURE, SAMPLE)
        assert two.put(1, PICTURE, SAMPLE)
    with memory.shelf("one", SIDE) as emptied:
        assert emptied.find(0) is None

    assert memory.num_bytes == 6 << 20


def test_a_picture_is_kept_once():
    """A picture that is there already is not kept again."""
    memory = PictureMemory(16 << 20)
    with memory.shelf("one", SIDE) as shelf:
        assert shelf.put(0, PICTURE, SAMPLE) is shelf.put(0, PICTURE + 1, SAMPLE)

    assert memory.num_bytes == 3 << 20


def test_the_budget_counts_each_sample_once(shards: ShardSet):
    """A sample that several batches or calls could not read counts once; beyond the budget the epoch is lost."""
    lost = [UnreadableSample(position, f"key{position}", f"shard {position} is cut") for position in range(3)]
    with Epochs(shards, window=1, skip_budget=2).use(seed=0, epoch=0) as epoch:
        counts = [epoch.count_skipped(lost[:2]), epoch.count_skipped(lost[:2])]
        with pytest.raises(DataLost, match=r"shard 2 is cut \(sample key2, epoch 0; datasets\.skip-budget allows 2"):
            epoch.count_skipped(lost)

    assert counts == [2, 0]


def test_consumers_share_an_epoch(shards: ShardSet):
    """Who uses an epoch at the same time, or soon after, uses the same one; others get another."""
    epochs = Epochs(shards, window=1, skip_budget=0)
    with epochs.use(0, 0) as one, epochs.use(0, 0) as two, epochs.use(0, 1) as other:
        pass
    with epochs.use(0, 0) as again:
        pass

    assert one is two is again
    assert other is not one
    assert sorted(one.order.tolist()) == list(range(8))


def test_fingerprints_follow_data_and_settings(tmp_path: Path, shards: ShardSet):
    """A fingerprint is that of samples and settings, wherever the shards lie."""
    moved = open_shards(write_noise_shards(tmp_path, [4, 4]))
    settings = [DatasetsConfig(), DatasetsConfig(window=2), DatasetsConfig(augment="crop"), DatasetsConfig(flip=False)]

    fingerprints = [fingerprint_of(shards, config) for config in settings]

    assert len(set(fingerprints)) == len(settings)
    assert fingerprint_of(moved, DatasetsConfig(num_workers=5)) == fingerprints[0]
