"""What callers cost who take nothing of what they are sent: gRPC then keeps it, and whoever sends it waits."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
from framing import whole
from grpc_health.v1 import health_pb2
from serving import WAIT_S, Gate, health_of, random_call, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from samix.mixing.frozen import FrozenMixer
from samix.wire import encode_request

Gated = tuple[FrozenMixer, Gate]

MIX = "/samix.mixer.v1.MixerService/Mix"
MIX_STREAM = "/samix.mixer.v1.MixerService/MixStream"
WATCH = "/grpc.health.v1.Health/Watch"
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


def end_of(call: grpc.Call) -> threading.Event:
    """Make an event of the end of a call."""
    ended = threading.Event()
    if not call.add_callback(ended.set):
        ended.set()
    return ended


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
    """Whoever does not read an answer for as long as an upload may take is cut off."""
    mixer, gate = gated
    with serve(mixer, requests=RequestConfig(max_upload_s=0.5)) as server, deaf(server) as channel:
        call = ask_for_images(channel, gate, server)

        assert end_of(call).wait(WAIT_S)
        assert call.code() is grpc.StatusCode.CANCELLED


def test_stream_whose_terms_are_never_read_is_cut_off():
    """A client that does not even read the terms of its stream loses it, as one that reads no answer."""
    over = threading.Event()
    requests = RequestConfig(max_upload_s=0.2, stream_idle_s=0.2)
    with serve(tiny_mixer(), requests=requests) as server, deaf(server) as channel:
        call = channel.stream_stream(MIX_STREAM)(forever(over))

        assert end_of(call).wait(WAIT_S)
        over.set()

    assert call.code() is grpc.StatusCode.CANCELLED


def test_watchers_that_do_not_read_hold_up_no_check():
    """Health answers and the server drains, however many watch it without reading what they are told."""
    with ExitStack() as opened:
        server = opened.enter_context(serve(tiny_mixer(), exit_timeout_s=5.0))
        channel = opened.enter_context(deaf(server))
        other = opened.enter_context(grpc.insecure_channel(server.addresses["grpc"]))
        watches = [channel.unary_stream(WATCH)(ANYTHING.SerializeToString()) for _ in range(3)]
        next(iter(health_of(other).Watch(ANYTHING, timeout=WAIT_S)))  # they came before

        status = health_of(other).Check(ANYTHING, timeout=WAIT_S).status
        drained = server.stop()

    assert status == health_pb2.HealthCheckResponse.SERVING
    assert drained
    assert all(end_of(watch).wait(WAIT_S) for watch in watches)
