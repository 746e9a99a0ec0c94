"""MixStream as stock protobuf messages see it: what is promised on a stream, refused on it, and survived."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from framing import parts, whole
from grpc_health.v1 import health_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import WAIT_S, Gate, ask, connect, health_of, random_call, sample, serve, wait_until

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.pieces import as_array
from samix.wire import MixCall, MixReply, decode_response, encode_request

Gated = tuple[FrozenMixer, Gate]


class Talk:
    """A stream that a test says every message of."""

    def __init__(self, stub: MixerServiceStub) -> None:
        self._said: queue.SimpleQueue[pb.MixStreamRequest | None] = queue.SimpleQueue()
        self.call = stub.MixStream(iter(self._said.get, None), timeout=WAIT_S)
        self.terms = next(self.call).terms

    def say(self, **fields: object) -> None:
        self._said.put(pb.MixStreamRequest(**fields))  # pyright: ignore[reportArgumentType]

    def send(self, sequence: int, call: MixCall, *, chunk_bytes: int = 1 << 20, timeout_ms: int = 0) -> None:
        framed = encode_request(call)
        pixels, head = bytes(framed.bulk), {"request": framed.message, "pixel_bytes": len(framed.bulk)}
        for start in range(0, len(pixels), chunk_bytes):
            chunk = pixels[start : start + chunk_bytes]
            self.say(sequence=sequence, chunk=chunk, **(head | {"timeout_ms": timeout_ms} if start == 0 else {}))

    def hang_up(self) -> None:
        self._said.put(None)

    def answer(self) -> pb.MixStreamResponse:
        """Take the next answer, chunks joined."""
        message = next(self.call)
        pixels = message.chunk
        while len(pixels) < message.pixel_bytes:
            pixels += next(self.call).chunk
        message.chunk = pixels
        return message

    def reply(self, call: MixCall) -> MixReply:
        message = self.answer()
        assert message.HasField("response"), message.refusal
        return decode_response(Framed(message.response, memoryview(message.chunk)), call)

    def status(self) -> grpc.StatusCode:
        """Wait for the end."""
        for _ in _until_the_end(self.call):
            pass
        return self.call.code()


@contextmanager
def talking(server: MixerServer) -> Iterator[Talk]:
    with connect(server.addresses["grpc"]) as stub:
        talk = Talk(stub)
        try:
            yield talk
        finally:
            talk.hang_up()
            talk.call.cancel()


def test_answers_come_in_order_and_equal_those_of_unary_calls(server: MixerServer, stub: MixerServiceStub):
    """Batches of different sizes and replies on one stream are answered in their order, as Mix answers them."""
    calls = [
        random_call(3, seed=1),
        random_call(2, side=48, seed=2, wants_images=True),
        random_call(4, seed=3, wants_images=True, image_dtype=np.dtype(np.float16)),
    ]

    with talking(server) as talk:
        for number, call in enumerate(calls, 1):
            talk.send(number, call, chunk_bytes=1000)
        replies = [talk.reply(call) for call in calls]

    for call, reply in zip(calls, replies, strict=True):
        alone = ask(stub, call)
        np.testing.assert_allclose(reply.mask_logits.astype(float), alone.mask_logits.astype(float), atol=0.02)
        if reply.images is not None and alone.images is not None:
            assert reply.images.dtype == call.image_dtype
            np.testing.assert_allclose(
                as_array(reply.images).astype(float), as_array(alone.images).astype(float), atol=1
            )


def test_images_as_float16_are_finer_than_uint8(server: MixerServer, stub: MixerServiceStub):
    """Mixed images in float16 are those in uint8, before they are rounded to 1/255."""
    call = random_call(2, wants_images=True)

    coarse = ask(stub, call).images
    fine = ask(stub, replace(call, image_dtype=np.dtype(np.float16))).images

    assert coarse is not None
    assert fine is not None
    np.testing.assert_allclose(
        as_array(fine).astype(np.float32) * 255, as_array(coarse), atol=0.63
    )  # half a step, and float16's own


def test_a_refused_batch_leaves_the_others_alone(server: MixerServer):
    """A bad batch is refused in its place, with code, sentence and field; those around it are answered."""
    good = random_call()
    bad = replace(good, lam=np.full(4, 2, np.float32))

    with talking(server) as talk:
        for number, call in enumerate((good, bad, good), 1):
            talk.send(number, call)
        first, refused, last = talk.answer(), talk.answer(), talk.answer()

    assert (first.sequence, refused.sequence, last.sequence) == (1, 2, 3)
    assert first.HasField("response")
    assert last.HasField("response")
    assert refused.refusal.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.refusal.message == "lam must lie in [0, 1], got 2.0"
    assert [violation.field for violation in refused.refusal.field_violations] == ["lam"]


def test_unknown_mixer_is_not_found(server: MixerServer):
    """A batch for a mixer that is not hosted is refused with NOT_FOUND."""
    with talking(server) as talk:
        talk.send(1, random_call(mixer="ghost"))
        answer = talk.answer()

    assert answer.refusal.code == grpc.StatusCode.NOT_FOUND.value[0]


def test_terms_are_said_first(server: MixerServer):
    """The first message says credits, batches and chunk size."""
    with talking(server) as talk:
        assert (talk.terms.credits, talk.terms.max_batches, talk.terms.max_chunk_bytes) == (8, 256, 2 << 20)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"sequence": 1, "chunk": b"x"}], "a chunk of batch 1 came, which is not the one being sent"),
        ([{"sequence": 7, "request": {}}], "sequence must be 1, got 7"),
        ([{"sequence": 1, "request": {}, "pixel_bytes": 9, "chunk": b"x" * 10}], "a chunk of 10 bytes came, 9 of"),
        ([{"sequence": 1, "request": {}, "pixel_bytes": 9}, {"sequence": 2, "request": {}}], "before batch 1 is whole"),
        ([{"sequence": 1, "request": {}, "pixel_bytes": 3 << 20, "chunk": bytes(2097153)}], "a chunk may have 2097152"),
    ],
)
def test_breach_of_the_protocol_ends_the_stream(server: MixerServer, messages: list[dict], sentence: str):
    """Messages that make no sense end the stream with INVALID_ARGUMENT and a sentence."""
    with talking(server) as talk:
        for message in messages:
            talk.say(**message)

        assert talk.status() is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in talk.call.details()


def test_more_batches_than_credits_end_the_stream(gated: Gated):
    """A client that sends more than its credit loses its stream at once."""
    mixer, gate = gated
    with serve(mixer, requests=RequestConfig(stream_credits=2)) as server, talking(server) as talk:
        gate.shut()
        talk.send(1, random_call())
        gate.wait_until_held()
        for number in (2, 3, 4):
            talk.send(number, random_call())

        assert talk.status() is grpc.StatusCode.INVALID_ARGUMENT
        assert "2 batches are sent and not answered" in talk.call.details()
        gate.open()


def test_garbage_ends_the_stream(server: MixerServer):
    """Bytes that are no message end the stream with INVALID_ARGUMENT."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        call = channel.stream_stream("/samix.mixer.v1.MixerService/MixStream")(iter([b"\xff\xff"]), timeout=WAIT_S)
        with pytest.raises(grpc.RpcError):
            list(call)

        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_half_closed_stream_answers_what_was_sent(server: MixerServer):
    """After the client has said that no more will come, the rest is answered and the stream ends with OK."""
    call = random_call()
    with talking(server) as talk:
        talk.send(1, call)
        talk.send(2, call)
        talk.hang_up()

        assert [talk.reply(call).mixer for _ in range(2)] == ["tiny", "tiny"]
        assert talk.status() is grpc.StatusCode.OK


def test_given_up_batches_are_dropped(gated: Gated):
    """A batch that is given up while it waits is refused with CANCELLED and never computed."""
    mixer, gate = gated
    with serve(mixer) as server, talking(server) as talk:
        gate.shut()
        talk.send(1, random_call())
        gate.wait_until_held()
        talk.send(2, random_call())
        talk.say(sequence=2, cancel=True)
        talk.send(3, random_call())
        talk.send(4, replace(random_call(), mixer="ghost"))
        wait_until(lambda: server.front._in_flight.count == 4)  # so it has read what came before
        gate.open()
        answers = [talk.answer() for _ in range(4)]
        computed = sample(server, "mixer_images_total", model="tiny", version=mixer.version, mode="mask_logits")

    assert [answer.HasField("response") for answer in answers] == [True, False, True, False]
    assert answers[1].refusal.code == grpc.StatusCode.CANCELLED.value[0]
    assert computed == 8


def test_batch_given_up_in_the_middle_needs_no_more_chunks(server: MixerServer):
    """A batch can be given up between its chunks; the next one follows at once."""
    call = random_call()
    with talking(server) as talk:
        talk.say(sequence=1, request=encode_request(call).message, pixel_bytes=call.pixels.nbytes, chunk=b"abc")
        talk.say(sequence=1, cancel=True)
        talk.send(2, call)

        assert talk.answer().refusal.code == grpc.StatusCode.CANCELLED.value[0]
        assert talk.reply(call).mixer == "tiny"


def test_deadline_of_a_batch_is_kept(gated: Gated):
    """A batch whose time is over while it waits is refused with DEADLINE_EXCEEDED."""
    mixer, gate = gated
    with serve(mixer) as server, talking(server) as talk:
        gate.shut()
        talk.send(1, random_call())
        gate.wait_until_held()
        talk.send(2, random_call(), timeout_ms=1)
        talk.send(3, random_call())
        gate.open()
        answers = [talk.answer() for _ in range(3)]

    assert answers[1].refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert answers[2].HasField("response")


def test_streams_are_bounded_and_health_answers(mixer: FrozenMixer):
    """With every permitted stream open, one more is refused with RetryInfo, and health checks and mixes answer."""
    with (
        serve(mixer, requests=RequestConfig(max_streams=2)) as server,
        talking(server),
        talking(server),
        connect(server.addresses["grpc"]) as stub,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        refused = stub.MixStream(iter(()), timeout=WAIT_S)

        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert any(key == "grpc-status-details-bin" for key, _ in refused.trailing_metadata())
        assert ask(stub, random_call()).mixer == "tiny"
        check = health_of(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_slow_upload_is_cut_off(mixer: FrozenMixer):
    """A stream that stops in the middle of a batch is cancelled, and its place is free again."""
    limits = RequestConfig(max_streams=1, max_upload_s=0.1)
    with serve(mixer, requests=limits) as server:
        with talking(server) as talk:
            talk.say(sequence=1, request=encode_request(random_call()).message, pixel_bytes=100, chunk=b"x")

            assert talk.status() is grpc.StatusCode.CANCELLED
        with talking(server) as talk:
            talk.send(1, random_call())

            assert talk.answer().HasField("response")


def test_idle_stream_is_ended(mixer: FrozenMixer):
    """A stream that sends nothing for a while ends with OK."""
    with serve(mixer, requests=RequestConfig(stream_idle_s=0.1)) as server, talking(server) as talk:
        assert talk.status() is grpc.StatusCode.OK


def test_draining_server_asks_streams_to_end(gated: Gated):
    """A server that stops answers what streams sent, tells them to end, and is done in time."""
    mixer, gate = gated
    with serve(mixer) as server, talking(server) as talk:
        gate.shut()
        talk.send(1, random_call())
        gate.wait_until_held()
        server.front.drain()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        gate.open()

        said = [talk.answer(), talk.answer()]
        stopping.join(WAIT_S)

    assert sorted(message.is_ending for message in said) == [False, True]
    assert sorted(message.HasField("response") for message in said) == [False, True]
    assert not stopping.is_alive()


def test_memory_is_given_back(server: MixerServer):
    """Whatever becomes of batches and streams, nothing is held for them afterwards."""
    with talking(server) as talk:
        talk.send(1, random_call())
        talk.send(2, replace(random_call(), lam=np.full(4, 2, np.float32)))
        talk.answer()
        talk.answer()
        talk.say(sequence=3, request=encode_request(random_call()).message, pixel_bytes=100, chunk=b"x")
        talk.call.cancel()
    with talking(server) as talk:
        talk.hang_up()
        talk.status()
    server.front.join(WAIT_S)
    wait_until(lambda: sample(server, "mixer_streams_open") == 0)  # the cancelled one ends by itself

    assert sample(server, "mixer_request_memory_bytes") == 0
    assert sample(server, "mixer_requests_in_flight") == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=6))
def test_nothing_on_a_stream_is_a_fault_of_the_server(server: MixerServer, messages: list[bytes]):
    """Whatever bytes are sent, the stream ends with OK or INVALID_ARGUMENT."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        call = channel.stream_stream("/samix.mixer.v1.MixerService/MixStream")(iter(messages), timeout=WAIT_S)
        for answer in _until_the_end(call):
            refusal = parts(pb.MixStreamResponse.FromString(answer)).message.refusal
            assert refusal.code not in (grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.UNKNOWN.value[0])

        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


def _until_the_end(call: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from call
    except grpc.RpcError:
        return


def test_whole_messages_are_read_as_well(server: MixerServer):
    """A stock client sends what protobuf serializes; it is the same on the wire."""
    call = random_call()
    framed = encode_request(call)

    assert whole(framed).SerializeToString().endswith(bytes(framed.bulk))
    with connect(server.addresses["grpc"]) as stub:
        assert ask(stub, call).mask_logits.shape == (4, 1, 8, 8)
