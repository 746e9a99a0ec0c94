"""DatasetService over a real server and real shards: what batches hold, and who gets which."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import ask, connect, random_call, sample, serve, wait_until
from shard_making import noise, real_data, write_noise_shards
from shard_server import serve_shards
from subscribing import Received, datasets_at, epoch_of, subscribed, wanted

from mixer_server.app import MixerServer
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.engine.decoding import Decoder
from samix.jpeg import JpegBatch
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixer.v1.dataset_pb2_grpc import DatasetServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import draw_plan, generator_for
from samix.mixing.render import compose
from samix.wire import decode_rendering
from services.shards.augment import ResizedCrop
from services.shards.dataset import BatchRequest, ShardDataset
from services.shards.index import open_shards

COUNTS = [17, 9, 21]
TOTAL = sum(COUNTS)
WORKERS = DatasetsConfig(num_workers=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_noise_shards(tmp_path_factory.mktemp("noise"), COUNTS)


@pytest.fixture(scope="module")
def datasets(shards: str, mixer: FrozenMixer) -> Iterator[MixerServer]:
    with serve(mixer, dataset=(f"noise={shards}",), datasets=WORKERS) as running:
        yield running


@pytest.fixture(scope="module")
def data(datasets: MixerServer) -> Iterator[DatasetServiceStub]:
    with datasets_at(datasets.addresses["grpc"]) as connected:
        yield connected


@contextmanager
def stub_of(pattern: str, config: DatasetsConfig) -> Iterator[tuple[MixerServer, DatasetServiceStub]]:
    """Serve one dataset, `noise`, without a mixer."""
    with (
        serve(dataset=(f"noise={pattern}",), datasets=config) as running,
        datasets_at(running.addresses["grpc"]) as connected,
    ):
        yield running, connected


def keys_of(batches: list[Received]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def contents(batches: list[Received]) -> list[tuple[list[str], bytes, bytes]]:
    return [(batch.keys, batch.data, batch.message.mask_logits) for batch in batches]


def test_lists_datasets(data: DatasetServiceStub):
    """A client learns name, fingerprint and size of each dataset."""
    (info,) = data.ListDatasets(pb.ListDatasetsRequest()).datasets

    assert (info.name, info.num_samples, info.num_shards) == ("noise", TOTAL, 3)
    assert len(info.fingerprint) == 12


def test_an_epoch_is_every_sample_once(data: DatasetServiceStub):
    """The batches of an epoch hold every sample once, with its own picture and label, in an order of the seed's."""
    batches = epoch_of(data, wanted())

    keys = keys_of(batches)
    assert sorted(keys) == [f"{number:04d}" for number in range(TOTAL)]
    assert keys != sorted(keys)
    for batch in batches:
        for key, label, pixels in zip(batch.keys, batch.message.labels, batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels, noise(int(key)).transpose(2, 0, 1))
            assert label == int(key) % 3


@pytest.mark.parametrize("num_consumers", [2, 5])
def test_consumers_share_an_epoch(data: DatasetServiceStub, num_consumers: int):
    """Over all consumers every sample comes once, also those at the end that fill no batch."""
    shares = [
        epoch_of(data, wanted(num_consumers=num_consumers, consumer=consumer)) for consumer in range(num_consumers)
    ]

    counts = Counter(key for share in shares for key in keys_of(share))
    assert set(counts.values()) == {1}
    assert len(counts) == TOTAL
    assert len({len(share) for share in shares}) == 1


def test_drop_last_gives_full_batches(data: DatasetServiceStub):
    """With drop_last all batches of all consumers have one size, and all consumers as many."""
    shares = [epoch_of(data, wanted(num_consumers=3, consumer=consumer, drop_last=True)) for consumer in range(3)]

    assert {len(share) for share in shares} == {TOTAL // 12}
    assert {len(batch.keys) for share in shares for batch in share} == {4}


def test_terms_come_first(data: DatasetServiceStub):
    """Before any batch a consumer learns how many come, from what, and how long it may tarry."""
    with subscribed(data, wanted(batch_size=10), num_credits=0) as consumer:
        terms = consumer.terms

    assert terms.num_batches == 5
    assert terms.dataset.name == "noise"
    assert terms.lease_ms == 60_000
    assert terms.version == ""


def test_epochs_and_seeds_differ(data: DatasetServiceStub):
    """Each epoch and each seed has an order of its own."""
    orders = [keys_of(epoch_of(data, wanted(seed=seed, epoch=epoch))) for seed, epoch in [(7, 0), (7, 1), (8, 0)]]

    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_cursor_repeats_and_skips_nothing(data: DatasetServiceStub):
    """Whoever comes back with the cursor of any batch gets exactly the rest, bit for bit."""
    whole = epoch_of(data, wanted(augmentation=pb.AUGMENTATION_CROP_FLIP))

    for done in (1, 5, len(whole)):
        cursor = whole[done - 1].message.cursor
        rest = epoch_of(data, wanted(augmentation=pb.AUGMENTATION_CROP_FLIP, cursor=cursor))
        assert contents(rest) == contents(whole[done:])


def test_a_cursor_repeats_mixes(data: DatasetServiceStub):
    """With a mixer the rest is of the same samples and plans; pixels differ by the rounding that the company of a batch
    in its pass makes."""
    changes: dict[str, Any] = {"mixer": "tiny", "image_size": 32, "augmentation": pb.AUGMENTATION_CROP_FLIP}
    whole = epoch_of(data, wanted(**changes))

    for done in (1, 5, len(whole)):
        rest = epoch_of(data, wanted(cursor=whole[done - 1].message.cursor, **changes))
        assert len(rest) == len(whole) - done
        for again, first in zip(rest, whole[done:], strict=True):
            assert plan_of(again) == plan_of(first)
            assert again.pixels == pytest.approx(first.pixels, abs=1)
            assert logits_of(again) == pytest.approx(logits_of(first), abs=1e-5)


def plan_of(batch: Received) -> tuple[list[str], list[int], list[float]]:
    return batch.keys, list(batch.message.partner), list(batch.message.lam)


def logits_of(batch: Received) -> np.ndarray:
    return np.frombuffer(batch.message.mask_logits, "<f2").astype(np.float32)


def test_a_restarted_server_goes_on(shards: str, data: DatasetServiceStub):
    """A cursor finds its place on another server of the same data."""
    whole = epoch_of(data, wanted())

    with stub_of(shards, WORKERS) as (_, stub):
        rest = epoch_of(stub, wanted(cursor=whole[2].message.cursor))

    assert contents(rest) == contents(whole[3:])


def test_random_views_are_those_of_training(shards: str, data: DatasetServiceStub):
    """CROP_FLIP shows the very views that a trainer of the same seed sees in the same epoch."""
    crop = ResizedCrop(size=8, scale=(0.08, 1.0), flip=True)
    reference = ShardDataset(open_shards(shards), crop, num_classes=3, seed=7)

    batch = epoch_of(data, wanted(augmentation=pb.AUGMENTATION_CROP_FLIP, epoch=2))[0]

    positions = np.array([int(key) for key in batch.keys])
    expected = reference.load(BatchRequest(2, positions)).images.numpy()
    reference.close()
    np.testing.assert_array_equal(batch.pixels, expected)


def test_mixed_batches_are_those_of_mix(data: DatasetServiceStub, mixer: FrozenMixer):
    """A mixed batch is its unmixed pictures, mixed by the plan that seed, epoch and number give."""
    plain = epoch_of(data, wanted(image_size=32))
    mixed = epoch_of(data, wanted(image_size=32, mixer="tiny"))

    for number, (one, other) in enumerate(zip(plain, mixed, strict=True)):
        message = other.message
        plan = draw_plan(len(one.keys), alpha=2.0, generator=generator_for("subscribe", 7, 0, number))
        assert list(message.partner) == plan.partner.tolist()
        torch.testing.assert_close(torch.tensor(list(message.lam)), plan.lam)
        logits = torch.frombuffer(bytearray(message.mask_logits), dtype=torch.float16).reshape(*message.mask_shape)
        expected = compose(torch.from_numpy(one.pixels.copy()), None, plan, logits, mixer.spec.rendering)
        assert np.abs(other.pixels / 255.0 - expected.images.numpy()).max() <= 0.51 / 255
        assert other.keys == one.keys
        assert message.labels == one.message.labels


def test_terms_say_how_masks_are_rendered(data: DatasetServiceStub, mixer: FrozenMixer):
    """With a mixer the terms hold its version and the rendering of its logits."""
    with subscribed(data, wanted(mixer="tiny", image_size=32)) as consumer:
        assert consumer.terms.version == mixer.version
        rendering = decode_rendering(consumer.terms.rendering)

    assert rendering.upsampling == mixer.spec.rendering.upsampling
    assert rendering.lam_margin == pytest.approx(mixer.spec.rendering.lam_margin)


@pytest.mark.parametrize("mixer_name", ["", "tiny"])
def test_float16_is_the_same_finer(data: DatasetServiceStub, mixer_name: str):
    """FLOAT16 holds the same pictures in 0..1."""
    fine = epoch_of(data, wanted(image_size=32, mixer=mixer_name, format=pb.BATCH_FORMAT_FLOAT16))[0]
    coarse = epoch_of(data, wanted(image_size=32, mixer=mixer_name))[0]

    images = np.frombuffer(fine.data, "<f2").reshape(tuple(fine.message.shape))
    assert np.abs(images - coarse.pixels / np.float32(255)).max() <= 0.6 / 255  # float16 has 1/16 of such steps


@pytest.mark.parametrize("mixer_name", ["", "tiny"])
def test_jpegs_can_be_told_apart(data: DatasetServiceStub, decoder: Decoder, mixer_name: str):
    """JPEG sends a file for each image, which any decoder reads."""
    batch = epoch_of(data, wanted(image_size=32, mixer=mixer_name, format=pb.BATCH_FORMAT_JPEG, jpeg_quality=95))[0]

    lengths = tuple(batch.message.jpeg_lengths)
    jpegs = JpegBatch(data=batch.data, lengths=lengths, shape=tuple(batch.message.shape))  # type: ignore[arg-type]
    jpegs.check()
    assert sum(lengths) == len(batch.data)
    assert len(decoder.decode(jpegs)) == 4


def test_padded_crops_do_not_depend_on_memory(shards: str):
    """With --datasets.augment crop the pictures are the same bits whether they are kept in memory or not."""
    flips = wanted(augmentation=pb.AUGMENTATION_CROP_FLIP)
    epochs = []

    for memory_mib in (0, 16):
        config = DatasetsConfig(num_workers=1, memory_mib=memory_mib, augment="crop", padding=2)
        with stub_of(shards, config) as (_, stub):
            epochs += [contents(epoch_of(stub, flips)), contents(epoch_of(stub, flips))]

    assert all(epoch == epochs[0] for epoch in epochs)


@pytest.mark.parametrize(
    ("augment", "augmentation"),
    [
        ("crop", pb.AUGMENTATION_CENTER),
        ("crop", pb.AUGMENTATION_CROP_FLIP),
        ("resized_crop", pb.AUGMENTATION_CROP_FLIP),
    ],
)
def test_pictures_in_memory_are_read_once(tmp_path: Path, augment: Any, augmentation: Any):
    """Once all pictures are in memory the shards are needed no more, whatever the seed and epoch."""
    pattern = write_noise_shards(tmp_path, COUNTS)
    config = DatasetsConfig(num_workers=1, memory_mib=16, augment=augment, padding=2)

    with stub_of(pattern, config) as (server, stub):
        first = epoch_of(stub, wanted(augmentation=augmentation))
        for shard in tmp_path.glob("*.tar"):
            os.truncate(shard, 0)
        again = epoch_of(stub, wanted(augmentation=augmentation))
        other = epoch_of(stub, wanted(augmentation=augmentation, epoch=3))
        held = sample(server, "mixer_dataset_memory_bytes")

    assert contents(again) == contents(first)
    assert sorted(keys_of(other)) == sorted(keys_of(first))
    assert TOTAL * 3 * 8 * 8 <= held <= 16 << 20


def test_memory_that_is_too_small_changes_nothing(tmp_path: Path):
    """Pictures that find no room in memory are decoded in each epoch, and batches are the same."""
    pattern = write_noise_shards(tmp_path, [9], side=8)
    large = wanted(image_size=400, batch_size=3)  # 0.46 MiB a picture

    epochs = []
    for memory_mib in (0, 1, 4):
        config = DatasetsConfig(num_workers=1, memory_mib=memory_mib)
        with stub_of(pattern, config) as (_, stub):
            epochs += [contents(epoch_of(stub, large)), contents(epoch_of(stub, large))]

    assert all(epoch == epochs[0] for epoch in epochs)


@pytest.mark.parametrize("scheme", ["http", "pipe"])
def test_remote_shards(tmp_path: Path, shards: str, data: DatasetServiceStub, scheme: str):
    """Shards behind an address or a command are read like local ones."""
    folder, config = Path(shards).parent, DatasetsConfig(num_workers=1, cache=tmp_path / "cache")
    with serve_shards(folder) as site:
        start = f"{site.url}/" if scheme == "http" else f"pipe:cat {folder}/"
        with stub_of(f"{start}noise-{{000000..000002}}.tar", config) as (_, stub):
            batches = epoch_of(stub, wanted())

    assert [batch.data for batch in batches] == [batch.data for batch in epoch_of(data, wanted())]


def test_metrics_count_what_was_sent(shards: str):
    """Batches, images and bytes are counted by dataset, and the call by its status."""
    with stub_of(shards, WORKERS) as (server, stub):
        batches = epoch_of(stub, wanted())
        ended = {"model": "unknown", "version": "unknown", "method": "Subscribe", "code": "OK"}
        wait_until(lambda: sample(server, "mixer_requests_total", **ended))

        assert sample(server, "mixer_dataset_batches_total", dataset="noise") == len(batches)
        assert sample(server, "mixer_dataset_images_total", dataset="noise") == TOTAL
        assert sample(server, "mixer_dataset_sent_bytes_total", dataset="noise") > TOTAL * 3 * 8 * 8
        assert sample(server, "mixer_dataset_subscriptions_open", dataset="noise") == 0
        assert sample(server, "mixer_request_memory_bytes") == 0


def test_mix_is_served_beside(datasets: MixerServer, data: DatasetServiceStub):
    """Requests to mix are answered while datasets are streamed."""
    with subscribed(data, wanted(mixer="tiny", image_size=32)) as consumer, connect(datasets.addresses["grpc"]) as stub:
        consumer.next_batch()
        assert ask(stub, random_call()).mask_logits.shape[0] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "image_size", "total"),
    [("cifar100-20c/cifar100-20c-train-*.tar", 32, 10_000), ("imagenet-like/native/*-train-*.tar", 224, 128)],
)
def test_real_shards(pattern: str, image_size: int, total: int):
    """Four consumers of real pictures share an epoch, each key once."""
    with serve(dataset=(f"real={real_data() / pattern}",)) as server, datasets_at(server.addresses["grpc"]) as stub:
        keys = [
            key
            for consumer in range(4)
            for key in keys_of(
                epoch_of(stub, wanted("real", image_size=image_size, num_consumers=4, consumer=consumer, batch_size=32))
            )
        ]

    assert len(set(keys)) == len(keys) == total
