"""The threads and processes that decode, where some of them hang, cannot start, or make what nobody wants any more."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import WAIT_S, sample, serve, wait_until
from shard_making import write_noise_shards
from subscribing import datasets_at, epoch_of, subscribed, wanted

from mixer_server.datasets import pool as pools
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.pool import DecodePool
from services.shards.augment import CentreCrop
from services.shards.cache import ShardCache
from services.shards.decoder import Decoder, DecoderDied
from services.shards.decoding import DecodeRequest
from services.shards.index import ShardSet, open_shards

REQUEST = DecodeRequest(positions=[0], transform=CentreCrop(size=8, resize=8), seed=0, epoch=0)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_noise_shards(tmp_path_factory.mktemp("noise"), [20, 20])


class Unsendable(ShardSet):
    """Cannot be sent to a process."""

    def __init__(self) -> None:
        super().__init__(shards=(), samples=(), cache=ShardCache())

    def __reduce__(self) -> str:
        raise TypeError("cannot be sent")


@contextmanager
def running_pool(shards: ShardSet) -> Iterator[DecodePool]:
    pool = DecodePool("noise", shards, 1, lambda: None)
    pool.start()
    try:
        yield pool
    finally:
        pool.close()


def stop_processes(pool: DecodePool, num_processes: int) -> None:
    wait_until(lambda: len(pool.process_ids) == num_processes)
    for process_id in pool.process_ids:
        os.kill(process_id, signal.SIGSTOP)


def test_a_process_that_cannot_start_does_not_end_its_thread():
    """A thread whose first process cannot be started, for whatever reason, still takes work, which can say so."""
    taken = threading.Event()

    with running_pool(Unsendable()) as pool:
        pool.add(None, [lambda _decoder: taken.set()])

        assert taken.wait(WAIT_S)


def test_what_nobody_wants_waits_no_longer(pattern: str):
    """A subscription that ends takes its parts out of the queue, also while all processes hang."""
    config = DatasetsConfig(num_workers=1)
    with serve(dataset=(f"noise={pattern}",), datasets=config) as server, datasets_at(server.addresses["grpc"]) as stub:
        pool = server.datasets.find("noise").pool
        before = epoch_of(stub, wanted())
        stop_processes(pool, 1)
        with subscribed(stub, wanted()):
            wait_until(lambda: sample(server, "mixer_dataset_decode_queue_parts", dataset="noise") >= 2)

        wait_until(lambda: not sample(server, "mixer_dataset_decode_queue_parts", dataset="noise"))
        for process_id in pool.process_ids:
            os.kill(process_id, signal.SIGCONT)
        assert [batch.data for batch in epoch_of(stub, wanted())] == [batch.data for batch in before]


def test_processes_that_hang_are_ended_together(pattern: str, monkeypatch: pytest.MonkeyPatch):
    """Closing takes as long for many processes that hang as for one."""
    monkeypatch.setattr(pools, "_CLOSE_S", 1.0)
    pool = DecodePool("noise", open_shards(pattern), 4, lambda: None)
    hung, errors = threading.Semaphore(0), list[Exception]()

    def decode(decoder: Decoder) -> None:
        hung.release()
        try:
            decoder.decode(REQUEST)
        except DecoderDied as error:
            errors.append(error)

    pool.start()
    stop_processes(pool, 4)
    pool.add(decode, [decode] * 4)
    assert all(hung.acquire(timeout=WAIT_S) for _ in range(4))

    started_s = time.monotonic()
    pool.close()

    assert time.monotonic() - started_s < 3
    assert len(errors) == 4


def test_a_repaired_shard_is_read_again(tmp_path: Path):
    """Who was told that data is lost goes on with the cursor once the shard is repaired, without another epoch."""
    pattern = write_noise_shards(tmp_path, [8, 8])
    with (
        serve(dataset=(f"noise={pattern}",), datasets=DatasetsConfig(num_workers=1)) as server,
        datasets_at(server.addresses["grpc"]) as stub,
    ):
        shards = {shard: shard.read_bytes() for shard in tmp_path.glob("*.tar")}
        for shard in shards:
            shard.write_bytes(b"no tar at all")
        with pytest.raises(Exception, match=r"noise-00000\d\.tar"):
            epoch_of(stub, wanted())
        for shard, content in shards.items():
            shard.write_bytes(content)

        assert sum(len(batch.keys) for batch in epoch_of(stub, wanted())) == 16
