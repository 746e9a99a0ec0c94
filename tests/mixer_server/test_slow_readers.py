"""What callers cost who take nothing of what they are sent: gRPC then keeps it, and whoever sends it waits."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
from framing import whole
from grpc_health.v1 import health_pb2
from serving import WAIT_S, Gate, health_of, random_call, sample, serve, tiny_mixer, wait_until

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from samix.mixing.frozen import FrozenMixer
from samix.wire import encode_request

Gated = tuple[FrozenMixer, Gate]

MIX = "/samix.mixer.v1.MixerService/Mix"
MIX_STREAM = "/samix.mixer.v1.MixerService/MixStream"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ANYTHING = health_pb2.HealthCheckRequest()


def deaf(server: MixerServer) -> grpc.Channel:
    """Connect as a peer that has room for five bytes of each call until somebody reads; gRPC allows no less."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 5)]
    return grpc.insecure_channel(server.addresses["grpc"], options=options)


def ask_for_images(channel: grpc.Channel, gate: Gate, server: MixerServer) -> grpc.Call:
    """Have a batch mixed whose images nobody reads."""
    request = whole(encode_request(random_call(64, wants_images=True))).SerializeToString()
    gate.shut()
    call = channel.stream_stream(MIX)(iter([request]))
    gate.wait_until_held()
    gate.open()
    assert server.front._in_flight.join(WAIT_S), "it is mixed"
    return call


def forever(over: threading.Event) -> Iterator[bytes]:
    """Send nothing, and do not hang up."""
    over.wait(WAIT_S)
    yield from ()


def test_answer_that_is_not_read_counts_as_memory_held(gated: Gated):
    """The memory of a request is free when its answer has left the server, not when it is made."""
    mixer, gate = gated
    with serve(mixer) as server, deaf(server) as channel:
        budget = server.front._servicer._budget
        call = ask_for_images(channel, gate, server)

        held = budget.num_bytes
        call.cancel()

    assert held >= random_call(64).pixels.nbytes
    assert budget.num_bytes == 0


def test_answer_that_is_never_read_is_given_up(gated: Gated):
    """An answer that is not read for as long as an upload may take is dropped, and its memory is free."""
    mixer, gate = gated
    with serve(mixer, requests=RequestConfig(max_upload_s=0.5)) as server, deaf(server) as channel:
        call = ask_for_images(channel, gate, server)

        wait_until(lambda: server.front._servicer._budget.num_bytes == 0)
        assert call.is_active(), "the server did it, not this client"


def test_stream_whose_terms_are_never_read_is_cut_off():
    """A client that does not even read the terms of its stream loses it, as one that reads no answer."""
    over = threading.Event()
    requests = RequestConfig(max_upload_s=0.5, stream_idle_s=0.5)
    with serve(tiny_mixer(), requests=requests) as server, deaf(server) as channel:
        call = channel.stream_stream(MIX_STREAM)(forever(over))
        wait_until(lambda: sample(server, "mixer_streams_open") == 1)

        wait_until(lambda: sample(server, "mixer_streams_open") == 0)
        assert call.is_active(), "the server did it, not this client"
        over.set()


def test_watchers_that_do_not_read_hold_up_nobody():
    """Checks and other watchers are answered and the server drains, whoever watches without reading."""
    with ExitStack() as opened:
        server = opened.enter_context(serve(tiny_mixer()))
        channel = opened.enter_context(deaf(server))
        other = opened.enter_context(grpc.insecure_channel(server.addresses["grpc"]))
        deaf_watches = [channel.unary_stream(WATCH)(ANYTHING.SerializeToString()) for _ in range(3)]
        watch = health_of(other).Watch(ANYTHING, timeout=WAIT_S)

        statuses = [next(watch).status, health_of(other).Check(ANYTHING, timeout=WAIT_S).status]
        server.readiness.drain()
        statuses.append(next(watch).status)

        assert all(watch.is_active() for watch in deaf_watches), "they still watch"

    assert statuses == [SERVING, SERVING, NOT_SERVING]
