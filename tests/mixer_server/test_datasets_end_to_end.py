"""Our client against our server: every sample once, whatever dies."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dataset_consumer
import pytest
import torch
from dataset_consumer import line_of, read_ledger
from serving import sample, serve
from shard_making import noise, real_data, write_noise_shards

from benchmarks.endurance_servers import running_server
from mixer_server.app import MixerServer
from mixer_server.datasets.config import DatasetsConfig
from samix import connect
from samix.client.config import ClientConfig, RetryPolicy
from samix.client.datasets.subscription import Subscription
from samix.client.remote import RemoteMixer
from samix.errors import ConsumerTaken, MixerNotFound, StaleCursor
from samix.mixing.frozen import FrozenMixer

COUNTS = [17, 9, 21]
ROOT = Path(__file__).parents[2]
MIXER = ROOT / "mixers/samix-cifar100-20c-small.safetensors"
OPEN = "mixer_dataset_subscriptions_open"
QUICK = ClientConfig(retry=RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05))
WAIT_S = 120.0
NUM_CONSUMERS, KILLED, SLOW = 4, 1, 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_noise_shards(tmp_path_factory.mktemp("noise"), COUNTS)


def serve_noise(mixer: FrozenMixer, shards: str, port: int = 0) -> Any:
    return serve(mixer, dataset=(f"noise={shards}",), datasets=DatasetsConfig(num_workers=1), grpc_port=port)


@pytest.fixture(scope="module")
def server(mixer: FrozenMixer, shards: str) -> Iterator[MixerServer]:
    with serve_noise(mixer, shards) as running:
        yield running


@pytest.fixture
def remote(server: MixerServer) -> Iterator[RemoteMixer]:
    with connect(server.addresses["grpc"], mixer="tiny", config=QUICK) as mixer:
        yield mixer


def plain(remote: RemoteMixer, **options: Any) -> Subscription:
    return remote.subscribe("noise", mix=False, batch_size=4, image_size=8, augmentation="center", **options)


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_consumers_get_every_sample_once_as_it_is(remote: RemoteMixer):
    """Over two consumers every sample comes once, with its own pixels and label."""
    batches = [batch for consumer in range(2) for batch in plain(remote, consumer=consumer, num_consumers=2)]

    assert sorted(keys_of(batches)) == [f"{number:04d}" for number in range(sum(COUNTS))]
    for batch in batches:
        pictures = [torch.from_numpy(noise(int(key))).permute(2, 0, 1) for key in batch.keys]
        assert torch.equal(batch.pixels, torch.stack(pictures))
        assert batch.labels_a.tolist() == [int(key) % 3 for key in batch.keys]


def test_mixed_batches_are_blends_of_their_pairs(remote: RemoteMixer):
    """A mixed image is what its mask says of its own picture and its partner's."""
    batch = next(remote.subscribe("noise", batch_size=16, image_size=8, augmentation="center", format="float16"))

    unmixed = {key: torch.from_numpy(noise(int(key))).permute(2, 0, 1) / 255 for key in batch.keys}
    own = torch.stack([unmixed[key] for key in batch.keys])
    other = torch.stack([unmixed[key] for key in batch.partner_keys])
    assert torch.allclose(batch.images, batch.masks * own + (1 - batch.masks) * other, atol=2e-3)
    assert batch.labels_b.tolist() == [int(key) % 3 for key in batch.partner_keys]
    assert any(key != partner for key, partner in zip(batch.keys, batch.partner_keys, strict=True))


def test_epochs_mix_anew(remote: RemoteMixer):
    """No mixed batch is served twice: another epoch has another order, other pairs and other shares."""
    batches = [next(remote.subscribe("noise", batch_size=sum(COUNTS), image_size=8, epoch=epoch)) for epoch in range(2)]

    pairs = [set(zip(batch.keys, batch.partner_keys, strict=True)) for batch in batches]
    assert len(pairs[0] & pairs[1]) < sum(COUNTS) / 4
    assert batches[0].keys != batches[1].keys
    assert not torch.equal(batches[0].lam, batches[1].lam)


def test_a_server_that_is_stopped_and_started_costs_no_batch(mixer: FrozenMixer, shards: str, remote: RemoteMixer):
    """A consumer whose server drains, ends and starts again gets what an undisturbed one gets."""
    undisturbed = [line_of(batch) for batch in plain(remote)]
    with ExitStack() as clients:
        with serve_noise(mixer, shards) as first:
            port = int(first.addresses["grpc"].rpartition(":")[2])
            subscription = plain(clients.enter_context(connect(f"127.0.0.1:{port}", config=QUICK)), depth=2)
            came = [line_of(next(subscription)) for _ in range(3)]

        with serve_noise(mixer, shards, port):
            came += [line_of(batch) for batch in subscription]

    assert came == undisturbed


def test_a_slow_consumer_is_dropped_and_comes_back(mixer: FrozenMixer, shards: str):
    """Who takes nothing for longer than the lease is dropped by the server, and gets the rest when it goes on."""
    config = DatasetsConfig(num_workers=1, lease_s=0.2)
    with ExitStack() as opened:
        running = opened.enter_context(serve(mixer, dataset=(f"noise={shards}",), datasets=config))
        remote = opened.enter_context(connect(running.addresses["grpc"], config=QUICK))
        subscription = plain(remote, depth=1)
        came = [next(subscription)]
        wait_for(lambda: sample(running, OPEN, dataset="noise") == 1)
        wait_for(lambda: sample(running, OPEN, dataset="noise") == 0)

        came += list(subscription)

    assert Counter(keys_of(came)) == Counter(f"{number:04d}" for number in range(sum(COUNTS)))


def test_two_clients_are_not_one_consumer(remote: RemoteMixer):
    """A second client at a consumer's place is refused, while the first one goes on."""
    with plain(remote, depth=1) as first:
        came = [next(first)]
        with pytest.raises(ConsumerTaken):
            next(plain(remote))
        came += list(first)

    assert len(set(keys_of(came))) == sum(COUNTS)


def test_who_comes_back_with_its_state_takes_over(remote: RemoteMixer):
    """The same consumer need not wait until its own lost connection is noticed; what is left of that one hears it."""
    first = plain(remote, depth=1)
    came = [next(first)]
    revived = plain(remote)
    revived.load_state_dict(first.state_dict())

    came += list(revived)

    assert sorted(keys_of(came)) == [f"{number:04d}" for number in range(sum(COUNTS))]
    with pytest.raises(ConsumerTaken):
        list(first)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"seed": 1}, "seed"), ({"epoch": 1}, "epoch"), ({"fingerprint": "000000000000"}, "000000000000")],
)
def test_a_cursor_of_something_else_is_refused(remote: RemoteMixer, change: dict[str, Any], sentence: str):
    """A cursor of another seed, epoch or dataset is a StaleCursor that says what differs."""
    with plain(remote) as subscription:
        cursor = next(subscription).cursor

    with pytest.raises(StaleCursor, match=sentence):
        next(plain(remote, cursor=cursor | change))


def test_unknown_names_are_not_found(remote: RemoteMixer, server: MixerServer):
    """A dataset or mixer that is not there is MixerNotFound."""
    with pytest.raises(MixerNotFound, match="imagenet"):
        next(remote.subscribe("imagenet", mix=False, batch_size=4, image_size=8))
    with connect(server.addresses["grpc"], mixer="other") as elsewhere, pytest.raises(MixerNotFound, match="other"):
        next(elsewhere.subscribe("noise", batch_size=4, image_size=8))


class Consumer:
    """A process of `dataset_consumer`, and its ledger. `close` it."""

    def __init__(self, ledger: Path, wanted: dict[str, Any]) -> None:
        self._ledger = ledger
        self._wanted = wanted
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_ledger(self._ledger)

    def start(self) -> None:
        command = [sys.executable, dataset_consumer.__file__, str(self._ledger), json.dumps(self._wanted)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environ)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def join(self) -> int:
        assert self._process is not None
        return self._process.wait(WAIT_S)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def wait_for(is_so: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to that"
        threading.Event().wait(0.01)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("pattern", "mixer", "options", "pause_s"),
    [
        ("cifar100-20c/cifar100-20c-train-*.tar", MIXER.stem, {"batch_size": 64, "image_size": 32}, 0.02),
        ("imagenet-like/native/imagenet-native-train-*.tar", "", {"batch_size": 4, "image_size": 224}, 0.1),
    ],
    ids=["cifar100-20c", "imagenet-native"],
)
def test_four_consumers_through_kills(
    tmp_path: Path,
    pattern: str,
    mixer: str,
    options: dict[str, Any],
    pause_s: float,
    capsys: pytest.CaptureFixture[str],
):
    """With a consumer killed and resumed, one slow, and the server killed and restarted, every key comes once.

    The order of each consumer, its pairs and its shares are those of an undisturbed epoch, and so are unmixed pixels.
    """
    shards = real_data() / pattern
    began_s = time.monotonic()
    with ExitStack() as opened, ExitStack() as first_life:
        server = first_life.enter_context(started(shards, tmp_path, port=0))
        target, port = server.target, int(server.target.rpartition(":")[2])
        consumers = [
            Consumer(
                tmp_path / f"{number}.jsonl",
                {
                    "target": target,
                    "dataset": "data",
                    "mixer": mixer,
                    "pause_s": 4 * pause_s if number == SLOW else pause_s,
                    "options": {**options, "seed": 7, "consumer": number, "num_consumers": NUM_CONSUMERS, "depth": 2},
                },
            )
            for number in range(NUM_CONSUMERS)
        ]
        for consumer in consumers:
            opened.callback(consumer.close)
            consumer.start()

        wait_for(lambda: len(consumers[KILLED].lines) >= 2)
        consumers[KILLED].kill()
        lines_at_kill = len(consumers[KILLED].lines)
        consumers[KILLED].start()
        wait_for(lambda: len(consumers[SLOW].lines) >= 2)
        os.kill(server.child.process_id, 9)
        first_life.close()
        lines_at_restart = [len(consumer.lines) for consumer in consumers]
        opened.enter_context(started(shards, tmp_path, port=port))
        statuses = [consumer.join() for consumer in consumers]
        disturbed_s = time.monotonic() - began_s
        ledgers = [consumer.lines for consumer in consumers]
        undisturbed = [epoch_of(target, mixer, options, number) for number in range(NUM_CONSUMERS)]
        with connect(target) as remote:
            total = remote.list_datasets()[0].num_samples

    counts = Counter(key for lines in ledgers for line in lines for key in line["keys"])
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what the test is for
            f"\n{pattern}: {len(counts)} keys of {total} samples, most often {max(counts.values())} times; batches of "
            f"the consumers {[len(lines) for lines in ledgers]}; one killed after {lines_at_kill}, the server after "
            f"{lines_at_restart}; {disturbed_s:.1f} s"
        )
    assert statuses == [0] * NUM_CONSUMERS
    assert set(counts.values()) == {1}
    assert len(counts) == total
    assert lines_at_kill < len(ledgers[KILLED])
    assert lines_at_restart[SLOW] < len(ledgers[SLOW])
    assert [[comparable(line, mixer) for line in lines] for lines in ledgers] == [
        [comparable(line, mixer) for line in lines] for lines in undisturbed
    ]


def started(shards: Path, folder: Path, port: int) -> Any:
    flags = {"grpc-port": port, "dataset": f"data={shards}", "datasets.num-workers": 1}
    return running_server(MIXER, None, folder / f"server-{port}.log", flags)


def epoch_of(target: str, mixer: str, options: dict[str, Any], consumer: int) -> list[dict[str, Any]]:
    with connect(target, mixer=mixer) as remote:
        batches = remote.subscribe(
            "data", mix=bool(mixer), seed=7, consumer=consumer, num_consumers=NUM_CONSUMERS, **options
        )
        return [json.loads(json.dumps(line_of(batch))) for batch in batches]


def comparable(line: dict[str, Any], mixer: str) -> dict[str, Any]:
    """Leave mixed pixels out, whose last bits depend on which requests were computed together."""
    return {name: value for name, value in line.items() if name != "pixels" or not mixer}
