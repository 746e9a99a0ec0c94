from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from serving import WAIT_S, Gate, ask, connect, health_of, random_call, request, sample, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.batcher import BatchingConfig
from samix.errors import MixerOverloaded
from samix.mixing.frozen import FrozenMixer
from samix.status import from_rpc_error

SERVING = health_pb2.HealthCheckResponse.SERVING
Gated = tuple[FrozenMixer, Gate]


def wait_for_queue(server: MixerServer, num_requests: int) -> None:
    """Wait until so many requests are queued, without polling: every change wakes the batcher's waiters."""
    condition = server.batcher._changed
    with condition:
        assert condition.wait_for(lambda: server.batcher.num_requests >= num_requests, WAIT_S)


def wait_for_calls(server: MixerServer, num_calls: int) -> None:
    """Wait until no more than so many calls are being answered."""
    assert server.front._in_flight.join(WAIT_S, at_most=num_calls)


@pytest.fixture
def crowded(gated: Gated) -> Iterator[tuple[MixerServer, Gate]]:
    """A server for 3 calls at once and 4 images in the queue, with a pass that is held."""
    mixer, gate = gated
    batching = BatchingConfig(max_images=4, max_queue_images=4, max_queue_delay_s=0)
    with serve(mixer, batching=batching, requests=RequestConfig(max_images=4, max_in_flight=3)) as server:
        gate.shut()
        yield server, gate
        gate.open()


def test_full_queue_says_when_to_come_again(crowded: tuple[MixerServer, Gate]):
    """A full queue answers RESOURCE_EXHAUSTED with RetryInfo, and what was accepted is answered."""
    server, gate = crowded
    with connect(server.addresses["grpc"]) as stub:
        running = stub.Mix.future(request(), timeout=WAIT_S)
        gate.wait_until_held()
        waiting = stub.Mix.future(request(), timeout=WAIT_S)
        wait_for_queue(server, 1)

        with pytest.raises(grpc.RpcError) as caught:
            stub.Mix(request(), timeout=WAIT_S)
        gate.open()
        answers = [running.result(), waiting.result()]

    error = from_rpc_error(caught.value, "here")
    assert isinstance(error, MixerOverloaded)
    assert error.retry_after_s > 0
    assert "4 of at most 4 images wait" in str(error)
    assert all(answer.mixer == "tiny" for answer in answers)


def test_health_answers_while_all_mixes_wait(crowded: tuple[MixerServer, Gate]):
    """With every permitted Mix call waiting, one more is refused at once and health checks still answer."""
    server, gate = crowded
    small = random_call(1)
    with (
        ThreadPoolExecutor(3) as pool,
        connect(server.addresses["grpc"]) as stub,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        running = pool.submit(ask, stub, small)
        gate.wait_until_held()
        waiting = [pool.submit(ask, stub, small) for _ in range(2)]
        wait_for_queue(server, 2)

        with pytest.raises(grpc.RpcError) as caught:
            ask(stub, small)
        health = health_of(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        gate.open()
        answers = [running.result(), *(future.result() for future in waiting)]

    error = from_rpc_error(caught.value, "here")
    assert isinstance(error, MixerOverloaded)
    assert "3 calls of Mix are in flight" in str(error)
    assert health.status == SERVING
    assert all(np.array_equal(answer.mask_logits, answers[0].mask_logits) for answer in answers[1:])


def test_health_answers_beside_many_watchers(mixer: FrozenMixer):
    """Open health watches hold no threads: mixes and checks go on beside hundreds of them."""
    with serve(mixer) as server, connect(server.addresses["grpc"]) as stub:
        with grpc.insecure_channel(server.addresses["grpc"]) as channel:
            health = health_of(channel)
            watches, statuses = [], []
            for _ in range(100):  # one after another: calls that begin at once do hold a thread each
                watches.append(health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S))
                statuses.append(next(watches[-1]).status)
            check = health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        reply = ask(stub, random_call())

    assert statuses == [SERVING] * 100
    assert check.status == SERVING
    assert reply.mixer == "tiny"


def test_deadline_in_the_queue(crowded: tuple[MixerServer, Gate]):
    """A request whose deadline passes in the queue gets DEADLINE_EXCEEDED and is never computed."""
    server, gate = crowded
    with connect(server.addresses["grpc"]) as stub:
        running = stub.Mix.future(request(), timeout=WAIT_S)
        gate.wait_until_held()

        with pytest.raises(grpc.RpcError) as caught:
            stub.Mix(request(), timeout=0.2)
        gate.open()
        running.result()
        ask(stub, random_call())

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue]
    assert sample(server, "mixer_images_total", model="tiny", version=server.registry.mixers[0].version,
                  mode="mask_logits") == 8  # fmt: skip


def test_server_has_patience_of_its_own(gated: Gated):
    """A caller that sets no deadline is answered DEADLINE_EXCEEDED after the server's own."""
    mixer, gate = gated
    with serve(mixer, requests=RequestConfig(max_wait_s=0.1)) as server, connect(server.addresses["grpc"]) as stub:
        gate.shut()

        with pytest.raises(grpc.RpcError) as caught:
            stub.Mix(request())
        gate.open()

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue]
    assert "no answer came before the deadline" in str(caught.value)


def test_cancelled_work_is_dropped(crowded: tuple[MixerServer, Gate]):
    """A request that its caller cancels in the queue is never computed and makes room."""
    server, gate = crowded
    with connect(server.addresses["grpc"]) as stub:
        running = stub.Mix.future(request(), timeout=WAIT_S)
        gate.wait_until_held()
        waiting = stub.Mix.future(request(), timeout=WAIT_S)
        wait_for_queue(server, 1)

        waiting.cancel()
        wait_for_calls(server, 1)
        replacement = stub.Mix.future(request(), timeout=WAIT_S)
        gate.open()
        running.result()
        answer = replacement.result()

    assert answer.mixer == "tiny"
    assert sample(server, "mixer_requests_total", model="tiny", version=answer.version, method="Mix",
                  code="CANCELLED") == 1  # fmt: skip
    assert sample(server, "mixer_batches_total", model="tiny", version=answer.version) == 2


def test_grouped_requests_get_their_own_answers(gated: Gated):
    """Requests that wait together are computed in one pass, and each gets its own masks within 1e-3."""
    mixer, gate = gated
    calls = [random_call(size, seed=size) for size in (1, 2, 3, 4)]
    with serve(mixer) as server, connect(server.addresses["grpc"]) as stub, ThreadPoolExecutor(4) as pool:
        alone = [ask(stub, call) for call in calls]
        gate.shut()
        first = pool.submit(ask, stub, random_call())
        gate.wait_until_held()
        grouped = [pool.submit(ask, stub, call) for call in calls[:3]]
        wait_for_queue(server, 3)
        gate.open()
        first.result()
        together = [future.result() for future in grouped]
        batches = sample(server, "mixer_batches_total", model="tiny", version=mixer.version)

    assert batches == 4 + 1 + 1
    for one, other in zip(alone, together, strict=False):
        assert sigmoid(other.mask_logits) == pytest.approx(sigmoid(one.mask_logits), abs=1e-3)


def test_waiting_pixels_are_counted(crowded: tuple[MixerServer, Gate]):
    """The metrics say how many requests, images and bytes of pixels wait."""
    server, gate = crowded
    with connect(server.addresses["grpc"]) as stub:
        running = stub.Mix.future(request(), timeout=WAIT_S)
        gate.wait_until_held()
        waiting = stub.Mix.future(request(), timeout=WAIT_S)
        wait_for_queue(server, 1)

        sizes = [sample(server, f"mixer_queue_{unit}") for unit in ("requests", "images", "bytes")]
        gate.open()
        running.result()
        waiting.result()

    assert sizes == [1, 4, 4 * 3 * 32 * 32]


def test_other_mixers_are_not_mixed_up():
    """Requests for two mixers at once get the masks of the mixer each has named."""
    with (
        serve(tiny_mixer("one", seed=1), tiny_mixer("two", seed=2)) as server,
        connect(server.addresses["grpc"]) as stub,
        ThreadPoolExecutor(4) as pool,
    ):
        names = ["one", "two"] * 10
        replies = list(pool.map(lambda name: ask(stub, random_call(mixer=name)), names))

    assert [reply.mixer for reply in replies] == names
    assert not np.allclose(replies[0].mask_logits, replies[1].mask_logits)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float32)))
