"""What the server logs about a request carries the request's key: the client's, or one of the server's own."""

import logging
import re
import threading
from collections.abc import Iterator

import grpc
import pytest
import torch
from serving import WAIT_S, connect, request, serve, tiny_mixer, wait_until
from shard_making import write_noise_shards

import samix
from mixer_server.app import MixerServer
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.front.request_config import RequestConfig
from samix.client.config import ClientConfig, RetryPolicy, StreamPolicy
from samix.errors import MixerBroken
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.request_keys import KEY_METADATA, RequestKeys, tidy_key
from services.log_context import label_request

ONCE = RetryPolicy(attempts=1)
KEY = re.compile(r"[0-9a-f]{8}-\d+")


class Kept(logging.Handler):
    """Keeps the log as the handler of a program sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.addFilter(label_request)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> list[logging.LogRecord]:
    """What was logged; logging is taken back after each test."""
    kept, root = Kept(), logging.getLogger()
    root.addHandler(kept)
    root.setLevel(logging.INFO)
    return kept.records


@pytest.fixture
def broken() -> Iterator[tuple[MixerServer, FrozenMixer]]:
    """A server whose passes fail."""
    mixer = tiny_mixer()
    with serve(mixer) as server:
        mixer.net.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
        yield server, mixer


def key_in(records: list[logging.LogRecord], event: str) -> str:
    [found] = [record for record in records if record.getMessage() == event]
    return vars(found).get("request", "")


def mix_in_vain(server: MixerServer, config: ClientConfig) -> str:
    """Ask for a mix that fails; returns the key by which the client knows it."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    plan = MixPlan(lam=torch.full((2,), 0.5), partner=torch.tensor([1, 0]))
    with samix.connect(server.addresses["grpc"], config=config) as mixer:
        pending = mixer.submit(images, plan=plan)
        with pytest.raises(MixerBroken):
            pending.result()
    return pending.key


@pytest.mark.parametrize("max_batches", [0, 16], ids=["unary", "stream"])
def test_a_failed_pass_names_the_clients_request(broken, records, max_batches: int):
    """A line about a pass has the keys of its requests as their clients know them, however they came."""
    server, _ = broken

    key = mix_in_vain(server, ClientConfig(retry=ONCE, streams=StreamPolicy(max_batches=max_batches)))

    assert KEY.fullmatch(key)
    assert key_in(records, "pass_failed") == key


@pytest.mark.parametrize(("max_batches", "event"), [(0, "call_failed"), (16, "batch_failed")])
def test_a_bug_names_the_clients_request(broken, records, max_batches: int, event: str):
    """A line about a bug at the edge has the request's key."""
    server, mixer = broken
    del mixer.spec

    key = mix_in_vain(server, ClientConfig(retry=ONCE, streams=StreamPolicy(max_batches=max_batches)))

    assert key_in(records, event) == key


def test_a_request_without_a_key_gets_one(broken, records):
    """A client that names nothing gets a name from the server, so that its lines can be told apart."""
    server, _ = broken

    with connect(server.addresses["grpc"]) as stub:
        for _ in range(2):
            stub.Mix.future(request(), timeout=WAIT_S).exception()

    keys = [vars(record)["request"] for record in records if record.getMessage() == "pass_failed"]
    assert all(KEY.fullmatch(key) for key in keys)
    assert len(set(keys)) == 2


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("k" * 200_000, "k" * 64),
        ("one\nERROR\x1b[2J\u2028two\u202e\x9b", "one?ERROR?[2J?two??"),
        ("Schlüssel 7", "Schlüssel 7"),
    ],
    ids=["long", "unprintable", "foreign"],
)
def test_keys_are_tidy(broken, records, key: str, written: str):
    """What a peer calls its request cannot fill the log, begin lines in it, or speak to a terminal."""
    server, _ = broken

    with connect(server.addresses["grpc"]) as stub:
        stub.Mix.future(request(key=key), timeout=WAIT_S).exception()

    assert key_in(records, "pass_failed") == written


def test_a_call_cut_off_before_its_message_is_named_by_its_headers(records):
    """Of a request whose message never came the line has the key of the call's metadata."""
    over = threading.Event()
    with (
        serve(tiny_mixer(), requests=RequestConfig(max_upload_s=0.2)) as server,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        call = channel.stream_unary("/samix.mixer.v1.MixerService/Mix")
        pending = call.future(never(over), metadata=((KEY_METADATA, "slow-1"),), timeout=WAIT_S)
        wait_until(lambda: any(record.getMessage() == "upload_too_slow" for record in records))
        pending.cancel()
        over.set()

    assert key_in(records, "upload_too_slow") == "slow-1"


def test_a_subscription_has_one_key(tmp_path, records):
    """Lines about the start and the end of a subscription share the key that its client sent."""
    shards = write_noise_shards(tmp_path, [8])
    with (
        serve(dataset=(f"noise={shards}",), datasets=DatasetsConfig(num_workers=1)) as server,
        samix.connect(server.addresses["grpc"]) as client,
        client.subscribe("noise", mix=False, batch_size=4, image_size=32, seed=0, epoch=0) as batches,
    ):
        assert sum(1 for _ in batches) == 2
        wait_until(lambda: any(record.getMessage() == "subscription_ended" for record in records))

    started, ended = key_in(records, "subscription_started"), key_in(records, "subscription_ended")
    assert KEY.fullmatch(started)
    assert started == ended


def test_keys_differ():
    """No two makers make the same keys, and one never makes a key twice."""
    one, other = RequestKeys(), RequestKeys()

    keys = [maker.next() for maker in (one, other) for _ in range(100)]

    assert len(set(keys)) == 200
    assert all(tidy_key(key) == key for key in keys)


def never(over: threading.Event) -> Iterator[bytes]:
    """Send nothing until the call is over."""
    over.wait(WAIT_S)
    yield from ()
