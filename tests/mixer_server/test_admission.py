import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2
from serving import WAIT_S, ask, connect, health_of, random_call, request, sample, serve, wait_until

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from samix.errors import MixerOverloaded
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.status import from_rpc_error

MIX = "/samix.mixer.v1.MixerService/Mix"
GET_MIXER = "/samix.mixer.v1.MixerService/GetMixer"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
CROWD = RequestConfig(max_in_flight=3)
SERVING = health_pb2.HealthCheckResponse.SERVING


@contextmanager
def stalled(server: MixerServer, method: str, num_calls: int) -> Iterator[tuple[list, threading.Semaphore]]:
    """Open calls that send headers and then nothing; with them what is released whenever one of them ends."""
    hang_up, ended = threading.Event(), threading.Semaphore(0)

    def nothing() -> Iterator[bytes]:
        hang_up.wait()
        yield from ()

    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        calls = [channel.stream_unary(method).future(nothing()) for _ in range(num_calls)]
        for call in calls:
            call.add_done_callback(lambda _: ended.release())
        try:
            yield calls, ended
        finally:
            hang_up.set()


def wait_for(ended: threading.Semaphore, num_calls: int) -> None:
    for _ in range(num_calls):
        assert ended.acquire(timeout=WAIT_S), "a call neither ended nor was refused"


@pytest.mark.parametrize("method", [MIX, GET_MIXER, CHECK, WATCH])
def test_calls_without_a_message_hold_few_threads(mixer: FrozenMixer, method: str):
    """Callers of one method that send headers only are refused beyond a number, and the other methods answer."""
    with serve(mixer, requests=CROWD) as server, stalled(server, method, 100) as (calls, ended):
        wait_for(ended, 97)
        refused = [call for call in calls if call.done()]

        with connect(server.addresses["grpc"]) as stub, grpc.insecure_channel(server.addresses["grpc"]) as channel:
            if method != MIX:
                assert ask(stub, random_call()).mixer == "tiny"
            if method != CHECK:
                assert health_of(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == SERVING
            if method != GET_MIXER:
                assert stub.GetMixer(pb.GetMixerRequest(), timeout=WAIT_S).mixer.name == "tiny"
        counted = sample(server, "mixer_requests_total", model="unknown", version="unknown",
                         method=method.rpartition("/")[2], code="RESOURCE_EXHAUSTED")  # fmt: skip

    error = from_rpc_error(refused[0], "here")
    assert isinstance(error, MixerOverloaded)
    assert error.retry_after_s > 0
    assert "3 calls of" in str(error)
    assert len(refused) == counted == 97


def has_place(stub: MixerServiceStub) -> bool:
    """Ask for a mix; whether the server had a place for it."""
    try:
        return ask(stub, random_call()).mixer == "tiny"
    except grpc.RpcError as error:
        if not isinstance(from_rpc_error(error, "server"), MixerOverloaded):
            raise
        return False


def test_message_must_come_in_time(mixer: FrozenMixer):
    """A call whose message does not come in time is cancelled and counted, and its place is free again."""
    limits = RequestConfig(max_in_flight=3, max_upload_s=0.1)
    with serve(mixer, requests=limits) as server, stalled(server, MIX, 3) as (calls, ended):
        wait_for(ended, 3)

        with connect(server.addresses["grpc"]) as stub:
            wait_until(lambda: has_place(stub))  # a caller hears of the end before its place is free
        server.stop()
        counted = sample(server, "mixer_requests_total", model="unknown", version="unknown", method="Mix",
                         code="CANCELLED")  # fmt: skip

    assert [call.code() for call in calls] == [grpc.StatusCode.CANCELLED] * 3
    assert counted == 3


def test_calls_without_a_message_do_not_hold_up_the_end(mixer: FrozenMixer):
    """A server that drains does not wait for messages that may never come."""
    with serve(mixer, requests=CROWD) as server, stalled(server, MIX, 4) as (calls, ended):
        wait_for(ended, 1)  # the other three are in

        is_drained = server.stop()

        wait_for(ended, 3)
    assert is_drained
    assert all(call.done() for call in calls)


@pytest.mark.parametrize("method", [MIX, GET_MIXER, CHECK, WATCH])
def test_a_call_needs_a_message(server: MixerServer, method: str):
    """A call that ends without having sent its message is INVALID_ARGUMENT."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        call = channel.stream_unary(method).future(iter(()), timeout=WAIT_S)

        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "needs exactly one message, got none" in call.details()


def test_first_message_is_the_request(server: MixerServer):
    """Of two messages the first is answered, as unary methods of gRPC do."""
    first, second = request(), pb.MixRequest(mixer="ghost")
    messages = iter([first.SerializeToString(), second.SerializeToString()])
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        reply = channel.stream_unary(MIX)(messages, timeout=WAIT_S)

    assert pb.MixResponse.FromString(reply).mixer == "tiny"


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_garbled_health_checks(server: MixerServer, method: str):
    """A health check that cannot be parsed is the caller's fault."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        call = channel.unary_unary(method).future(b"\xff\xff", timeout=WAIT_S)

        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
