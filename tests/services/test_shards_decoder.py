"""A process that decodes: what it answers, and what happens when it dies."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from shard_making import noise, write_noise_shards

from services.shards.augment import CentreCrop
from services.shards.decode import Picture
from services.shards.decoder import MAX_ATTEMPTS, Decoder, DecoderDied
from services.shards.decoding import DecodedSample, DecodeRequest, UnreadableSample
from services.shards.index import ShardSet, open_shards

CENTRE = CentreCrop(size=8, resize=8)


@dataclass(frozen=True)
class Deadly(CentreCrop):
    """Ends the process that applies it."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002 - a transform's shape
        os._exit(3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shards(write_noise_shards(tmp_path_factory.mktemp("noise"), [4, 4]))


@pytest.fixture
def restarts() -> list[int]:
    return []


@pytest.fixture
def decoder(shards: ShardSet, restarts: list[int]) -> Iterator[Decoder]:
    running = Decoder(shards, lambda: restarts.append(1))
    yield running
    running.close()


def request(*positions: int, size: int = 8) -> DecodeRequest:
    return DecodeRequest(positions=positions, transform=CentreCrop(size=size, resize=size), seed=0, epoch=0)


def test_answers_pictures_keys_and_labels(decoder: Decoder):
    """The answer has a row for each position, whatever their order."""
    answer = decoder.decode(request(6, 1))

    assert answer.samples == [DecodedSample("0006", 0, (8, 8)), DecodedSample("0001", 1, (8, 8))]
    np.testing.assert_array_equal(answer.images, [noise(number).transpose(2, 0, 1) for number in (6, 1)])


def test_larger_answers_get_more_memory(decoder: Decoder):
    """An answer that is larger than all before it comes whole."""
    decoder.decode(request(0))

    answer = decoder.decode(request(*range(8), size=300))

    assert answer.images.shape == (8, 3, 300, 300)
    assert answer.images.min(axis=(1, 2, 3)).max() < answer.images.max(axis=(1, 2, 3)).min()


def test_a_killed_process_is_replaced(decoder: Decoder, restarts: list[int]):
    """After a kill the same request gets the same answer from another process."""
    before = decoder.decode(request(3)).images.copy()
    process_id = decoder.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)

    after = decoder.decode(request(3)).images

    np.testing.assert_array_equal(after, before)
    assert decoder.process_id != process_id
    assert restarts == [1]


def test_a_deadly_request_is_given_up(decoder: Decoder, restarts: list[int]):
    """A request that ends every process is refused after a few, and the next one is answered."""
    deadly = DecodeRequest(positions=[0], transform=Deadly(size=8, resize=8), seed=0, epoch=0)

    with pytest.raises(DecoderDied):
        decoder.decode(deadly)

    assert len(restarts) == MAX_ATTEMPTS
    assert decoder.decode(request(0)).samples


def test_an_interrupted_decoder_answers_no_more(decoder: Decoder):
    """What another thread interrupts fails, rather than to wait."""
    decoder.decode(request(0))
    decoder.interrupt()

    with pytest.raises(DecoderDied):
        decoder.decode(request(0))


def test_unreadable_samples_are_told_one_by_one(tmp_path: Path):
    """A shard that cannot be read costs its own samples, and is tried again only when that is asked for."""
    pattern = write_noise_shards(tmp_path, [2, 2])
    decoder = Decoder(open_shards(pattern))
    shard = tmp_path / "noise-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(b"cut")
    try:
        first = decoder.decode(request(0, 2)).samples
        shard.write_bytes(whole)
        again = decoder.decode(request(2)).samples
        repaired = decoder.decode(DecodeRequest(positions=[2], transform=CENTRE, seed=0, epoch=0, attempt=1)).samples
    finally:
        decoder.close()

    assert isinstance(first[0], DecodedSample)
    assert isinstance(first[1], UnreadableSample)
    assert (first[1].position, first[1].name) == (2, "noise-000001.tar[0]")
    assert str(shard) in first[1].reason
    assert isinstance(again[0], UnreadableSample)
    assert repaired == [DecodedSample("0002", 2, (8, 8))]
