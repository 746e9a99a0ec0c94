"""DatasetService where something is wrong: with what is asked, with the consumer, with the shards, with a process."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from serving import WAIT_S, ask, connect, health_of, random_call, sample, serve, wait_until
from shard_making import write_noise_shards
from subscribing import datasets_at, epoch_of, refusal, subscribed, wanted

from mixer_server.app import MixerServer
from mixer_server.cli import main
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.memory import resident_bytes
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixer.v1.dataset_pb2_grpc import DatasetServiceStub
from samix.mixing.frozen import FrozenMixer

TOTAL = 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_noise_shards(tmp_path_factory.mktemp("noise"), [TOTAL // 2, TOTAL // 2])


@pytest.fixture(scope="module")
def server(shards: str, mixer: FrozenMixer) -> Iterator[MixerServer]:
    config = DatasetsConfig(num_workers=1, max_subscriptions=4)
    with serve(mixer, dataset=(f"noise={shards}",), datasets=config) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(shards: str) -> Iterator[MixerServer]:
    config = DatasetsConfig(num_workers=1, lease_s=0.5)
    with serve(dataset=(f"noise={shards}",), datasets=config) as running:
        yield running


@pytest.fixture(scope="module")
def stub(server: MixerServer) -> Iterator[DatasetServiceStub]:
    with datasets_at(server.addresses["grpc"]) as connected:
        yield connected


@pytest.fixture
def data(server: MixerServer, stub: DatasetServiceStub) -> DatasetServiceStub:
    """A stub of a server on which nothing is open: a test before may have cancelled what ends only now."""
    wait_until(lambda: not open_subscriptions(server))
    return stub


def details_of(error: grpc.RpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - it is a call too
    assert status is not None
    found = kind()
    assert status.details[0].Unpack(found)
    return found


def open_subscriptions(server: MixerServer) -> float:
    return sample(server, "mixer_dataset_subscriptions_open", dataset="noise")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "other"}, "no dataset is called 'other' here; this server has 'noise'"),
        ({"mixer": "other", "image_size": 32}, "no mixer is called 'other' here; this server hosts 'tiny'"),
        ({"mixer": "tiny", "image_size": 32, "version": "abc"}, "not 'abc'"),
    ],
)
def test_unknown_names(data: DatasetServiceStub, changes: dict[str, Any], sentence: str):
    """A dataset or mixer that is not here is NOT_FOUND, and the answer says what is."""
    error = refusal(data, wanted(**changes))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert sentence in error.details()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 257}, "batch_size"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 100_000}, "image_size"),
        ({"image_size": 4_000_000_000}, "image_size"),
        ({"mixer": "tiny", "image_size": 4000}, "image_size"),
        ({"num_consumers": 0}, "num_consumers"),
        ({"num_consumers": 1 << 30}, "num_consumers"),
        ({"consumer": 1}, "consumer"),
        ({"format": 9}, "format"),
        ({"augmentation": 9}, "augmentation"),
        ({"jpeg_quality": 101}, "jpeg_quality"),
        ({"token": "x" * 65}, "token"),
        ({"version": "abc"}, "version"),
        ({"drop_last": True, "batch_size": 30, "num_consumers": 2}, "batch_size"),
    ],
)
def test_bad_numbers(data: DatasetServiceStub, changes: dict[str, Any], field: str):
    """A number that makes no sense, or is too large for this server, is INVALID_ARGUMENT and names its field."""
    error = refusal(data, wanted(**changes))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error, error_details_pb2.BadRequest).field_violations[0].field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "0123456789ab"),
        ("seed", 8),
        ("version", "0123456789ab"),
        ("epoch", 1),
        ("batch_size", 5),
        ("num_consumers", 2),
        ("consumer", 1),
        ("drop_last", True),
        ("num_batches", 11),
    ],
)
def test_stale_cursors(data: DatasetServiceStub, field: str, value: Any):
    """A cursor of anything else is FAILED_PRECONDITION, with both values."""
    cursor = epoch_of(data, wanted(mixer="tiny", image_size=32))[1].message.cursor
    ours = 10 if field == "num_batches" else getattr(cursor, field)
    setattr(cursor, field, value)

    error = refusal(data, wanted(mixer="tiny", image_size=32, cursor=cursor))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert str(value) in error.details()
    assert str(ours) in error.details()


def test_a_consumer_is_one_client(data: DatasetServiceStub):
    """A second client that claims a consumer gets ABORTED with its number; others of the epoch are served."""
    with subscribed(data, wanted(num_consumers=3, consumer=1), num_credits=1):
        error = refusal(data, wanted(num_consumers=3, consumer=1, token="somebody else"))
        nameless = refusal(data, wanted(num_consumers=3, consumer=1, token=""))
        other = epoch_of(data, wanted(num_consumers=3, consumer=2, token="somebody else"))

    assert error.code() is nameless.code() is grpc.StatusCode.ABORTED
    assert "consumer 1 " in error.details()
    assert other


def test_the_same_client_takes_over(data: DatasetServiceStub):
    """A client that lost its connection gets its consumer back by its token, and the older call is ended."""
    with subscribed(data, wanted(), num_credits=1) as older:
        first = older.next_batch()
        rest = epoch_of(data, wanted(cursor=first.message.cursor))
        with pytest.raises(grpc.RpcError):
            older.next_batch()
        code = older.call.code()

    assert code is grpc.StatusCode.ABORTED
    assert len(rest) == TOTAL // 4 - 1


def test_a_consumer_may_come_again(data: DatasetServiceStub):
    """A consumer that is through gives its claim back."""
    epoch_of(data, wanted(token="one"))

    assert epoch_of(data, wanted(token="another"))


def test_no_more_than_the_credits_is_sent(impatient: MixerServer):
    """A consumer gets as many batches as it gave credits, and is dropped when its lease ends."""
    with (
        datasets_at(impatient.addresses["grpc"]) as data,
        subscribed(data, wanted(), num_credits=2) as consumer,
    ):
        received = [consumer.next_batch(), consumer.next_batch()]
        with pytest.raises(grpc.RpcError) as caught:
            consumer.next_batch()
        rest = epoch_of(data, wanted(cursor=received[1].message.cursor))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # pyright: ignore[reportAttributeAccessIssue]
    assert "no credit came for 0.5 s; resume with your cursor" in str(caught.value)
    assert len(rest) == TOTAL // 4 - 2
    wait_until(lambda: not open_subscriptions(impatient))


def test_who_can_give_no_more_credits_is_not_waited_for(data: DatasetServiceStub):
    """A consumer that half-closed is sent the batches of its credits; the call ends then, lease or not."""
    with subscribed(data, wanted(), num_credits=2) as consumer:
        consumer.half_close()
        received = [consumer.next_batch(), consumer.next_batch()]
        with pytest.raises(grpc.RpcError):
            consumer.next_batch()
        code, sentence = consumer.call.code(), consumer.call.details()

    assert len(received) == 2
    assert code is grpc.StatusCode.CANCELLED
    assert "used its credits up; resume with your cursor" in sentence


def test_batches_take_half_of_the_memory_at_most(shards: str):
    """Consumers that take nothing leave half of the requests' memory to others, and whoever comes last a sentence."""
    large: dict[str, Any] = {"image_size": 400, "batch_size": TOTAL}  # 19 MB a batch
    memory_mib = (resident_bytes() >> 20) + 180  # 45 for batches
    requests = RequestConfig(max_wait_s=1)
    with (
        serve(dataset=(f"noise={shards}",), memory_mib=memory_mib, requests=requests) as running,
        datasets_at(running.addresses["grpc"]) as stub,
        subscribed(stub, wanted(seed=1, **large), num_credits=0),
        subscribed(stub, wanted(seed=2, **large), num_credits=0),
    ):
        wait_until(lambda: sample(running, "mixer_request_memory_bytes") > 36 << 20)
        error = refusal(stub, wanted(seed=3, **large))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


def test_who_does_not_read_is_cut_off(impatient: MixerServer):
    """A consumer that gives credits but takes nothing is dropped after its lease, and others go on meanwhile."""
    large = wanted(image_size=400, batch_size=40, token="deaf", seed=9)  # 19 MB, more than gRPC takes unread

    with (
        datasets_at(impatient.addresses["grpc"]) as deaf,
        datasets_at(impatient.addresses["grpc"]) as data,
        subscribed(deaf, large, num_credits=100),
    ):
        assert len(epoch_of(data, wanted())) == TOTAL // 4
        wait_until(lambda: not open_subscriptions(impatient))

    wait_until(lambda: not sample(impatient, "mixer_request_memory_bytes"))


def test_consumers_beyond_the_limit(server: MixerServer, data: DatasetServiceStub):
    """More subscriptions than allowed are refused with a time to wait, and cost health and mixing no thread."""
    with (
        ExitStack() as held,
        connect(server.addresses["grpc"]) as stub,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        for consumer in range(4):
            held.enter_context(subscribed(data, wanted(num_consumers=8, consumer=consumer), num_credits=1))
        error = refusal(data, wanted(num_consumers=8, consumer=4))
        health = health_of(channel).Check(health_pb2.HealthCheckRequest(service="samix.mixer.v1.DatasetService"))
        answer = ask(stub, random_call())

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert answer.mask_logits.shape[0] == 4


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "the first message must hold the subscription, got none"),
        ([pb.SubscribeRequest(credits=1)], "got credits alone"),
        ([pb.SubscribeRequest(subscription=wanted(token="x" * 100_000))], "a subscription may have 16384 bytes"),
        ([pb.SubscribeRequest(subscription=wanted())] * 2, "a second subscription came on one call"),
    ],
)
def test_first_messages(data: DatasetServiceStub, messages: list[pb.SubscribeRequest], sentence: str):
    """A call that does not begin with one subscription, and go on with credits, is INVALID_ARGUMENT."""
    with pytest.raises(grpc.RpcError) as caught:
        list(data.Subscribe(iter(messages), timeout=WAIT_S))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]
    assert sentence in str(caught.value)


def test_bytes_that_are_no_message(server: MixerServer):
    """What is no message of ours is INVALID_ARGUMENT."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        call = channel.stream_stream("/samix.mixer.v1.DatasetService/Subscribe")(iter([b"\xff\xff"]), timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]


def test_a_server_without_datasets(mixer: FrozenMixer):
    """A server that has no dataset lists none, and says how to give it one."""
    with serve(mixer) as running, datasets_at(running.addresses["grpc"]) as stub:
        listed = stub.ListDatasets(pb.ListDatasetsRequest()).datasets
        error = refusal(stub, wanted())

    assert not listed
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "start it with --dataset NAME=SHARDS" in error.details()


def test_draining_ends_subscriptions(shards: str):
    """A server that drains ends its subscriptions with UNAVAILABLE, and takes no new ones."""
    with (
        serve(dataset=(f"noise={shards}",), datasets=DatasetsConfig(num_workers=1)) as running,
        datasets_at(running.addresses["grpc"]) as stub,
        subscribed(stub, wanted(), num_credits=1) as consumer,
    ):
        consumer.next_batch()
        running.readiness.drain()
        running.front.drain()
        with pytest.raises(grpc.RpcError):
            consumer.next_batch()
        code, late = consumer.call.code(), refusal(stub, wanted(token="late", seed=1))

    assert code is late.code() is grpc.StatusCode.UNAVAILABLE
    assert "server is shutting down" in late.details()


def spoil(folder: Path, shard: int) -> None:
    """Truncate a shard of which an index promises more."""
    (folder / f"noise-{shard:06d}.tar").write_bytes(b"no tar at all")


def test_a_corrupt_shard_is_data_loss(tmp_path: Path):
    """A shard that cannot be read ends the call with DATA_LOSS and the shard's name."""
    pattern = write_noise_shards(tmp_path, [8, 8])
    with serve(dataset=(f"noise={pattern}",), datasets=DatasetsConfig(num_workers=1)) as running:
        spoil(tmp_path, 1)
        with datasets_at(running.addresses["grpc"]) as stub:
            error = refusal(stub, wanted())

    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert "noise-000001.tar" in error.details()


def test_within_the_budget_samples_are_left_out(tmp_path: Path):
    """As many samples as the budget allows are left out of their batches, named and counted; others stay in place."""
    pattern = write_noise_shards(tmp_path, [8, 8])
    config = DatasetsConfig(num_workers=1, skip_budget=8)
    with serve(dataset=(f"noise={pattern}",), datasets=config) as running:
        spoil(tmp_path, 0)
        with datasets_at(running.addresses["grpc"]) as stub:
            batches = epoch_of(stub, wanted())
            again = epoch_of(stub, wanted(cursor=batches[0].message.cursor))
        skipped = sample(running, "mixer_dataset_skipped_samples_total", dataset="noise")

    assert sorted(key for batch in batches for key in batch.keys) == [f"{number:04d}" for number in range(8, 16)]
    assert {len(batch.keys) + len(batch.message.skipped) for batch in batches} == {4}
    assert sorted(name for batch in batches for name in batch.message.skipped) == [
        f"noise-000000.tar[{row}]" for row in range(8)
    ]
    assert [batch.data for batch in again] == [batch.data for batch in batches[1:]]
    assert skipped == 8


def test_a_batch_of_nothing(tmp_path: Path, mixer: FrozenMixer):
    """A batch of which nothing can be read comes without images, and the next ones follow, mixed or not."""
    pattern = write_noise_shards(tmp_path, [3, 3])
    config = DatasetsConfig(num_workers=1, skip_budget=6, window=1)
    with serve(mixer, dataset=(f"noise={pattern}",), datasets=config) as running:
        spoil(tmp_path, 0)
        with datasets_at(running.addresses["grpc"]) as stub:
            plain = epoch_of(stub, wanted(batch_size=3))
            mixed = epoch_of(stub, wanted(batch_size=3, mixer="tiny", image_size=32))

    for batches in (plain, mixed):
        assert sorted(batch.message.shape[0] for batch in batches) == [0, 3]


def test_a_process_that_dies_is_replaced(shards: str):
    """When a decoding process is killed its batches are made again by another, and none is lost."""
    with serve(dataset=(f"noise={shards}",), datasets=DatasetsConfig(num_workers=2)) as running:
        pool = running.datasets.find("noise").pool
        with datasets_at(running.addresses["grpc"]) as stub:
            before = epoch_of(stub, wanted())
            for process_id in pool.process_ids:
                os.kill(process_id, signal.SIGKILL)
            after = epoch_of(stub, wanted())
        restarts = sample(running, "mixer_dataset_decoder_restarts_total", dataset="noise")

    assert [batch.data for batch in after] == [batch.data for batch in before]
    assert restarts >= 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset", "x"], "dataset must be NAME=SHARDS"),
        (["--dataset", "x=nothing-*.tar"], "dataset 'x' cannot be served"),
        (["--dataset", "x=a.tar", "--dataset", "x=b.tar"], "two datasets are called 'x'"),
        (["--dataset", "x=a.tar", "--workers", "2"], "start a server of its own for datasets, with --workers 1"),
        (["--dataset", f"x={__file__}"], "is no complete tar file"),
        (["--dataset", "x=a.tar", "--datasets.num-workers", "0"], "datasets.num-workers must be at least 1, got 0"),
        (["--dataset", "x=a.tar", "--datasets.lease-s", "0"], "datasets.lease-s must be positive"),
        (["--dataset", "x=a.tar", "--datasets.memory-mib", "99999999"], "leave room for requests"),
    ],
)
def test_flags(capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str):
    """A dataset that cannot be served ends the program with status 2 and a sentence."""
    status = main([*flags, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"])

    assert status == 2
    assert sentence in capsys.readouterr().err
