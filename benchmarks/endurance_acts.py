"""What clients do to a server, good and bad, and with which statuses it may answer."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from benchmarks.endurance_posts import SERVICE, open_channel, stream_messages
from samix.framing import Framed, join
from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import CLIENT_KEY, MixCall, encode_request

WAIT_S = 60.0
"""Longest a call may take that has no deadline of its own, seconds."""
_CHUNK_BYTES = 16 << 10
_SIDES = (32, 48, 64)
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Codes = Counter[str]
"""How often each status came, by its name."""


class Caller:
    """One client with a connection and a random generator of its own; for one thread."""

    def __init__(self, target: str, number: int) -> None:
        self.random = np.random.default_rng(number)
        """Decides what it does."""
        self._metadata = ((CLIENT_KEY, f"client-{number}"),)
        self._channel = open_channel(target)

    def close(self) -> None:
        """End the connection; calls under way end as cancelled."""
        self._channel.close()

    def unary(self, method: str, data: bytes, timeout_s: float = WAIT_S) -> Any:
        """Begin a unary call."""
        call = self._channel.unary_unary(method)
        return call.future(data, timeout=timeout_s, metadata=self._metadata)

    def stream(self, messages: Iterator[bytes], timeout_s: float = WAIT_S) -> Any:
        """Open a stream."""
        call = self._channel.stream_stream(f"{SERVICE}MixStream")
        return call(messages, timeout=timeout_s, metadata=self._metadata)

    def draw_request(self, *, jpeg: bool = False, images: bool = False, **changes: Any) -> Framed[pb.MixRequest]:
        """Fill a request for a batch of random size."""
        rng = self.random
        num_images, side = int(rng.integers(1, 65)), int(rng.choice(_SIDES))
        call = MixCall(
            mixer="",
            pixels=rng.integers(0, 256, (num_images, 3, side, side), np.uint8),
            lam=rng.uniform(0.1, 0.9, num_images).astype(np.float32),
            partner=rng.permutation(num_images),
            wants_images=images,
            image_dtype=np.dtype(rng.choice(["u1", "<f2"]) if images else "u1"),
        )
        return encode_request(replace(call, **changes), 90 if jpeg else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One thing that a client does."""

    name: str
    """For the report."""
    do: Callable[[Caller], Codes]
    """Does it, and says which statuses came."""
    allowed: frozenset[str]
    """Statuses that are right; RESOURCE_EXHAUSTED always is."""

    def surprises(self, codes: Codes) -> Codes:
        """Leave only the statuses that should not have come."""
        return Codes({f"{self.name}: {code}": count for code, count in codes.items() if code not in self.allowed})


def cancel_stream(caller: Caller, number: int) -> str:
    """Open a stream and cancel it: at once, with its terms, in the middle of a batch, or while an answer is waited for.

    Returns:
        The status of the stream.
    """
    request = caller.draw_request(images=bool(number % 2))
    messages = list(stream_messages(1, request, _CHUNK_BYTES))
    kind = number % 4
    upload = _Upload(messages[: (0, 0, max(1, len(messages) // 2), len(messages))[kind]])
    call = caller.stream(iter(upload))
    try:
        if kind == 1:
            next(call)
        elif kind > 1:
            upload.wait_until_sent()
    except grpc.RpcError:  # refused: its status says so
        pass
    call.cancel()
    upload.end()
    return call.code().name


class _Upload:
    """Messages that are sent one after another, and then none, until it ends."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages
        self._is_sent = threading.Event()
        self._has_ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self._messages
        self._is_sent.set()
        self._has_ended.wait(WAIT_S)

    def wait_until_sent(self) -> None:
        assert self._is_sent.wait(WAIT_S), "the server took no more messages"

    def end(self) -> None:
        self._has_ended.set()


def _unary(caller: Caller, framed: Framed, timeout_s: float = WAIT_S) -> Codes:
    call = caller.unary(f"{SERVICE}Mix", join(framed.message, framed.bulk), timeout_s)
    return Codes([call.code().name])


def _masks(caller: Caller) -> Codes:
    return _unary(caller, caller.draw_request())


def _images(caller: Caller) -> Codes:
    return _unary(caller, caller.draw_request(images=True))


def _jpeg(caller: Caller) -> Codes:
    return _unary(caller, caller.draw_request(jpeg=True))


def _stream(caller: Caller) -> Codes:
    """Send several batches on one stream and half-close it."""
    random = caller.random
    batches = [
        caller.draw_request(images=random.random() < 0.3, jpeg=random.random() < 0.3) for _ in range(random.integers(6))
    ]
    return _talk(caller, _batches(batches))


def _impatient_stream(caller: Caller) -> Codes:
    batches = [caller.draw_request() for _ in range(3)]
    return _talk(caller, _batches(batches, timeout_ms=int(caller.random.integers(1, 30))))


def _bad_stream(caller: Caller) -> Codes:
    """Send good batches around a bad one, or break the protocol."""
    bad = caller.draw_request(mixer="ghost")
    messages = [*_batches([caller.draw_request(), bad, caller.draw_request()])]
    if caller.random.random() < 0.5:
        messages.insert(int(caller.random.integers(len(messages))), messages[-1])  # a number that is not its turn
    return _talk(caller, iter(messages))


def _given_up(caller: Caller) -> Codes:
    """Give a batch up on its stream while it waits."""
    batches = [caller.draw_request() for _ in range(2)]
    give_up = pb.MixStreamRequest(sequence=2, cancel=True).SerializeToString()
    return _talk(caller, iter([*_batches(batches), give_up]))


def _bad(caller: Caller) -> Codes:
    """Send a batch of which something is wrong."""
    framed = caller.draw_request(jpeg=True)
    match caller.random.integers(5):
        case 0:
            framed.message.lam[0] = 2.0
        case 1:
            framed.message.shape[1] = 4
        case 2:
            framed.message.partner[0] = 1 << 20
        case 3:
            framed.message.mixer = "ghost"
        case 4:
            damaged = np.frombuffer(framed.bulk, np.uint8).copy()
            damaged[: len(damaged) // 2] = 0
            framed = Framed(framed.message, memoryview(damaged))
    return _unary(caller, framed)


def _cancelled(caller: Caller) -> Codes:
    """Cancel a mix that is under way."""
    framed = caller.draw_request()
    call = caller.unary(f"{SERVICE}Mix", join(framed.message, framed.bulk))
    threading.Event().wait(float(caller.random.uniform(0, 0.03)))
    call.cancel()
    return Codes([call.code().name])


def _late(caller: Caller) -> Codes:
    return _unary(caller, caller.draw_request(), float(caller.random.uniform(0.001, 0.05)))


def _garbage(caller: Caller) -> Codes:
    """Send bytes that are no message, as a Mix and on a stream."""
    data = caller.random.bytes(int(caller.random.integers(1, 4096)))
    return Codes([caller.unary(f"{SERVICE}Mix", data).code().name]) + _talk(caller, iter([data]))


def _questions(caller: Caller) -> Codes:
    """Ask what monitoring asks."""
    questions = {
        "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(),
        f"{SERVICE}ListMixers": pb.ListMixersRequest(),
        f"{SERVICE}GetMixer": pb.GetMixerRequest(),
    }
    return Codes(
        caller.unary(method, question.SerializeToString()).code().name for method, question in questions.items()
    )


def _batches(batches: list[Framed], timeout_ms: int = 0) -> Iterator[bytes]:
    for sequence, framed in enumerate(batches, 1):
        yield from stream_messages(sequence, framed, _CHUNK_BYTES, timeout_ms)


def _talk(caller: Caller, messages: Iterator[bytes]) -> Codes:
    """Send messages on a stream, half-close it, and count how its batches and the stream itself ended."""
    call, codes = caller.stream(messages), Codes()
    try:
        for data in call:
            message = pb.MixStreamResponse.FromString(data)
            if message.HasField("refusal"):
                codes[_CODES.get(message.refusal.code, "UNKNOWN")] += 1
            codes["OK"] += message.HasField("response")
    except grpc.RpcError:  # its status says how it ended
        pass
    return codes + Codes([call.code().name])


def _act(name: str, do: Callable[[Caller], Codes], *allowed: str) -> Act:
    return Act(name=name, do=do, allowed=frozenset({*allowed, "RESOURCE_EXHAUSTED"}))


ACTS = (
    _act("masks", _masks, "OK"),
    _act("images", _images, "OK"),
    _act("jpeg", _jpeg, "OK"),
    _act("stream", _stream, "OK"),
    _act("impatient stream", _impatient_stream, "OK", "DEADLINE_EXCEEDED"),
    _act("bad stream", _bad_stream, "OK", "INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED"),
    _act("given up", _given_up, "OK", "CANCELLED"),
    _act("bad batch", _bad, "INVALID_ARGUMENT", "NOT_FOUND"),
    _act("cancelled", _cancelled, "OK", "CANCELLED"),
    _act("late", _late, "OK", "DEADLINE_EXCEEDED", "CANCELLED"),
    _act("garbage", _garbage, "INVALID_ARGUMENT", "OK"),
    _act("questions", _questions, "OK"),
)
"""All that the mixed load is made of, each as often as any other."""
