"""Streams of sound and spoilt messages, cut off anywhere: what is said on them stays in order and in bounds."""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from child_server import ChildServer
from framing import whole
from fuzzing import ANSWER_S, SEED, Code, Tally, check_sentence, fuzz, generator
from mutations import LARGE_NUMBERS, NUMBERS, spoil
from request_mutations import spoil_request
from serving import random_call

from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import encode_request

PATH = ("streams", 0.1)

NUM_STREAMS = 4
"""Open at once."""
REQUESTS = [
    whole(encode_request(random_call(2, side=16))),
    whole(encode_request(random_call(1, side=16, wants_images=True))),
    whole(encode_request(random_call(2, side=16), jpeg_quality=90)),
]
REFUSED = frozenset(code.value[0] for code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNAVAILABLE, Code.CANCELLED))


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a client says on a stream, and when it leaves."""

    messages: list[bytes]
    """What it says."""
    num_answers: int | None
    """After how many messages of the server it cancels; None hears all of them."""


def draw_script(rng: random.Random) -> Script:
    """Draw a stream: batches in chunks, some of which are spoilt, as are the messages they travel in."""
    messages = [message for sequence in range(1, rng.randint(1, 5) + 1) for message in _draw_batch(sequence, rng)]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        if messages:
            rng.choice(_WAYS)(messages, rng)
    data = [message.SerializeToString() for message in messages]
    for _ in range(rng.choice((0, 0, 1, 2)) if data else 0):
        at = rng.randrange(len(data))
        data[at] = spoil(data[at], rng)
    if rng.random() < 0.15:  # half-closed too early
        del data[rng.randint(0, len(data)) :]
    return Script(messages=data, num_answers=rng.choice((None,) * 8 + (0, 1, 2, 3)))


def _draw_batch(sequence: int, rng: random.Random) -> Iterator[pb.MixStreamRequest]:
    request = pb.MixRequest()
    request.CopyFrom(rng.choice(REQUESTS))
    if rng.random() < 0.3:
        spoil_request(request, rng)
    pixels, keeps_pixels = request.pixels, rng.random() < 0.05
    if not keeps_pixels:
        request.ClearField("pixels")
    head: dict[str, Any] = {"request": request, "pixel_bytes": len(pixels)}
    if rng.random() < 0.1:
        head["timeout_ms"] = rng.choice((1, 2, 50, 2**32 - 1))
    chunk_bytes = rng.choice((len(pixels) + 1, len(pixels) // 2 + 1, 300, 50))
    for start in range(0, max(len(pixels), 1), chunk_bytes):
        yield pb.MixStreamRequest(sequence=sequence, chunk=pixels[start : start + chunk_bytes], **head)
        head = {}


def _drop(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    del messages[rng.randrange(len(messages))]


def _repeat(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    at = rng.randrange(len(messages))
    messages[at:at] = [messages[at]] * rng.choice((1, 1, 20))


def _swap(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    one, other = rng.randrange(len(messages)), rng.randrange(len(messages))
    messages[one], messages[other] = messages[other], messages[one]


def _cancel(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    at = rng.randint(0, len(messages))
    sequence = rng.choice((messages[at - 1].sequence, rng.choice(LARGE_NUMBERS)))
    messages.insert(at, pb.MixStreamRequest(sequence=sequence, cancel=True))


def _sequence(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    rng.choice(messages).sequence = rng.choice(LARGE_NUMBERS)


def _pixel_bytes(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    rng.choice(messages).pixel_bytes = rng.choice((*LARGE_NUMBERS, 4 << 20, (4 << 20) + 1))


def _chunk(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    rng.choice(messages).chunk = bytes(rng.choice((0, 1, 1000, (2 << 20) + 1 if rng.random() < 0.05 else 2000)))


def _timeout(messages: list[pb.MixStreamRequest], rng: random.Random) -> None:
    rng.choice(messages).timeout_ms = rng.choice(NUMBERS)


_WAYS = (_drop, _repeat, _swap, _cancel, _cancel, _sequence, _pixel_bytes, _chunk, _timeout)


class Listener:
    """Hears what a server says on a stream, and checks that each word fits the ones before."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sequence = 0  # of the answer that came last
        self._missing_bytes = 0  # of that answer
        self._max_chunk_bytes = 0  # by the terms, which come first

    def hear(self, data: bytes) -> None:
        message = pb.MixStreamResponse.FromString(data)
        if not self._max_chunk_bytes:
            self._max_chunk_bytes = message.terms.max_chunk_bytes
            assert self._max_chunk_bytes, self._name
        elif message.is_ending:
            assert not self._missing_bytes, self._name
        elif self._missing_bytes:
            assert message.sequence == self._sequence, self._name
            self._take_chunk(message.chunk)
        else:
            self._begin(message)

    def end(self, code: grpc.StatusCode, sentence: str, *, has_cancelled: bool) -> None:
        if has_cancelled:
            assert code in (Code.CANCELLED, Code.OK, Code.INVALID_ARGUMENT), f"{code}: {sentence}; {self._name}"
            return
        assert code in (Code.OK, Code.INVALID_ARGUMENT), f"{code}: {sentence}; {self._name}"
        assert not self._missing_bytes, self._name
        if code is not Code.OK:
            check_sentence(sentence, self._name)

    def _begin(self, message: pb.MixStreamResponse) -> None:
        assert message.sequence == self._sequence + 1, self._name
        self._sequence = message.sequence
        if message.HasField("response"):
            self._missing_bytes = message.pixel_bytes
            self._take_chunk(message.chunk)
            return
        refusal = message.refusal
        assert refusal.code in REFUSED or refusal.code == Code.DEADLINE_EXCEEDED.value[0], f"{refusal}; {self._name}"
        check_sentence(refusal.message, self._name)

    def _take_chunk(self, chunk: bytes) -> None:
        assert len(chunk) <= min(self._missing_bytes, self._max_chunk_bytes), self._name
        self._missing_bytes -= len(chunk)


def perform(call: Any, script: Script, name: str) -> str:
    """Hear what a server says to a script, until it ends or the script leaves; returns how it ended."""
    listener = Listener(name)
    has_cancelled = False
    with suppress(grpc.RpcError):
        for number in itertools.count():
            if number == script.num_answers:
                has_cancelled = call.cancel()
            if (data := next(call, None)) is None:
                break
            listener.hear(data)
    listener.end(call.code(), call.details() or "", has_cancelled=has_cancelled)
    return call.code().name


@pytest.mark.timeout(0)
def test_streams(server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally):
    """Every batch that is sent is answered or refused in its turn, or the stream says why it ends."""
    open_stream = channel.stream_stream("/samix.mixer.v1.MixerService/MixStream")
    opened: list[tuple[Any, Script, str, float]] = []

    def land() -> None:
        for call, script, name, started_s in opened:
            code = perform(call, script, name)
            tally.count(code, time.perf_counter() - started_s)
        opened.clear()

    def send(number: int) -> None:
        script = draw_script(generator(tally.path, number))
        name = f"input {number}, SAMIX_FUZZ_SEED={SEED}: {_hex(script.messages)}"
        call = open_stream(iter(script.messages), timeout=ANSWER_S)
        opened.append((call, script, name, time.perf_counter()))
        if len(opened) == NUM_STREAMS:
            land()

    fuzz(server, tally, ask_well, send, land)


def _hex(messages: Sequence[bytes]) -> str:
    return " ".join(message[:60].hex() for message in messages[:10])
