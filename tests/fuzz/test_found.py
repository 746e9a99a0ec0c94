"""What was found by fuzzing, and by reading for it: each of these once froze, filled or broke a server."""

import contextlib
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2
from mutations import packed
from serving import WAIT_S, connect, health_of, request, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.memory import resident_bytes
from samix.mixer.v1 import mixer_pb2 as pb

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STREAM = "/samix.mixer.v1.MixerService/MixStream"
NUMBERS_FIELDS = [5, 6, 7, 8]  # shape, lam, partner, jpeg_lengths


@pytest.fixture(scope="module")
def running() -> Iterator[MixerServer]:
    limits = RequestConfig(max_in_flight=3, max_upload_s=0.5)
    with serve(tiny_mixer(), requests=limits) as server:
        yield server


@pytest.fixture
def channel(running: MixerServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.addresses["grpc"]) as opened:
        yield opened


def refusal(call: grpc.Call) -> tuple[grpc.StatusCode, str]:
    return call.code(), call.details() or ""


def refusal_of(method: grpc.UnaryUnaryMultiCallable, data: bytes) -> tuple[grpc.StatusCode, str]:
    return refusal(method.future(data, timeout=WAIT_S))


def heard(call: Iterator[bytes]) -> list[pb.MixStreamResponse]:
    """Hear a stream to its end."""
    answers = []
    with contextlib.suppress(grpc.RpcError):
        answers.extend(map(pb.MixStreamResponse.FromString, call))
    return answers


def test_a_long_shape_takes_no_time(channel: grpc.Channel):
    """A shape of very many large numbers is refused at once; their product takes seconds and holds up all threads."""
    data = request(shape=[2**32 - 1] * 50_000).SerializeToString()
    mix = channel.unary_unary("/samix.mixer.v1.MixerService/Mix")
    before_s = time.process_time()

    code, sentence = refusal_of(mix, data)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "shape must be" in sentence
    assert time.process_time() - before_s < 1


@pytest.mark.parametrize("field", NUMBERS_FIELDS)
def test_numbers_are_not_parsed_by_the_million(channel: grpc.Channel, field: int):
    """A message of numbers instead of pixels is refused by its size: parsed, it needs thirteen times as much memory."""
    mix = channel.unary_unary("/samix.mixer.v1.MixerService/Mix")

    code, sentence = refusal_of(mix, packed(field, bytes(1 << 20)))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 262144 are not pixels" in sentence


@pytest.mark.parametrize("prefix", [b"\x0b\x0c", packed(15, b"ab") + packed(99, b"cd")])
def test_numbers_cannot_hide(channel: grpc.Channel, prefix: bytes):
    """That a message begins with an unknown group, or with pixels, does not let more numbers pass."""
    mix = channel.unary_unary("/samix.mixer.v1.MixerService/Mix")

    code, sentence = refusal_of(mix, prefix + packed(7, bytes(1 << 20)))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "are not pixels" in sentence


@pytest.mark.parametrize("num_bytes", [100, 1 << 20])
def test_pixels_of_a_stream_come_in_chunks(channel: grpc.Channel, num_bytes: int):
    """Pixels inside the request of a stream, which nobody would count or read, are refused."""
    message = pb.MixStreamRequest(sequence=1, request=request(pixels=bytes(num_bytes)), pixel_bytes=1, chunk=b"x")

    call = channel.stream_stream(STREAM)(iter([message.SerializeToString()]), timeout=WAIT_S)
    answers = heard(call)

    if num_bytes > 1 << 18:
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "are not pixels where pixels belong" in call.details()
    else:
        assert call.code() is grpc.StatusCode.OK
        assert "100 bytes of pixels came inside `request`" in answers[1].refusal.message


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x1a\x02\xff\xfe"])
def test_garbled_reflection(channel: grpc.Channel, data: bytes):
    """A garbled request of reflection is the caller's fault, not the server's."""
    call = channel.stream_stream(REFLECTION)(iter([data]), timeout=WAIT_S)

    with pytest.raises(grpc.RpcError):
        next(call)

    code, sentence = refusal(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is no request of ServerReflectionInfo" in sentence


def test_streams_of_reflection_are_bounded(running: MixerServer, channel: grpc.Channel):
    """Callers that open streams of reflection and say nothing are refused beyond a number, and ended in time."""
    hang_up = threading.Event()

    def nothing() -> Iterator[bytes]:
        hang_up.wait()
        yield from ()

    calls = [channel.stream_stream(REFLECTION)(nothing(), timeout=WAIT_S) for _ in range(50)]
    codes = [call.code() for call in calls]
    hang_up.set()

    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 47
    assert codes.count(grpc.StatusCode.CANCELLED) == 3
    with grpc.insecure_channel(running.addresses["grpc"]) as other:
        health = health_of(other).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert health.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "method",
    ["/samix.mixer.v1.MixerService/GetMixer", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"],
)
def test_names_are_short(channel: grpc.Channel, method: str):
    """A name of a megabyte is refused by every method that takes one, and not kept."""
    code, sentence = refusal_of(channel.unary_unary(method), packed(1, b"a" * (1 << 20)))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "send a shorter name" in sentence


def test_messages_larger_than_the_memory(channel: grpc.Channel):
    """Where messages may be larger than all memory for requests, Mix says so rather than break."""
    limits = RequestConfig(max_message_mib=1000)
    planned = (resident_bytes() >> 20) + 200
    with serve(tiny_mixer(), requests=limits, memory_mib=planned) as server, connect(server.addresses["grpc"]) as stub:
        code, sentence = refusal(stub.Mix.future(request(), timeout=WAIT_S))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "does not fit into this server's memory budget" in sentence


def test_watched_names_are_forgotten():
    """The name of a service that was watched is not kept once nobody watches it."""
    with serve(tiny_mixer()) as server, grpc.insecure_channel(server.addresses["grpc"]) as channel:
        watch, check = (channel.unary_stream(f"/grpc.health.v1.Health/{name}") for name in ("Watch", "Check"))
        kept = server.readiness._health._send_response_callbacks

        for number in range(20):
            call = watch(health_pb2.HealthCheckRequest(service=f"service {number}").SerializeToString(), timeout=WAIT_S)
            next(call)
            call.cancel()
        for _ in range(1000):  # each takes the server a moment, in which it hears of the cancelled calls
            list(check(b"", timeout=WAIT_S))
            if not kept:
                break

    assert not kept
