"""The server's side of MixStream by stock protobuf messages: plain, slow, and answering in order."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from samix.client.timers import Timers
from samix.errors import MixerCancelled
from samix.mixer.v1 import mixer_pb2 as pb

CREDITS = 16
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HangUp:
    """Instead of an answer: the stream ends with this status, OK included."""

    code: grpc.StatusCode


Outcome = pb.MixResponse | pb.Refusal | HangUp
Answer = Callable[[pb.MixRequest, "Future[Outcome]"], None]


@dataclass(eq=False)
class _Batch:
    request: pb.MixRequest
    num_bytes: int
    pixels: bytearray = field(default_factory=bytearray)
    outcome: "Future[Outcome]" = field(default_factory=Future)


class ScriptedStream:
    """One call of MixStream."""

    def __init__(self, answer: Answer, max_batches: int) -> None:
        """Let `answer` settle each batch, on a thread of its own; it may be settled already by then."""
        self._answer = answer
        self._terms = pb.StreamTerms(credits=CREDITS, max_batches=max_batches, max_chunk_bytes=CHUNK_BYTES)
        self._batches: dict[int, _Batch] = {}
        self._in_order: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._timers = Timers()

    def read(self, messages: Iterator[pb.MixStreamRequest]) -> None:
        """Take batches until the client has no more."""
        with suppress(grpc.RpcError, MixerCancelled):  # the call was cancelled, or ended
            for message in messages:
                self._take(message)
        self._in_order.put(0)

    def write(self, context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        """Answer in order."""
        yield pb.MixStreamResponse(terms=self._terms)
        while sequence := self._in_order.get():
            outcome = self._batches[sequence].outcome.result()
            if isinstance(outcome, HangUp):
                if outcome.code is not grpc.StatusCode.OK:
                    context.abort(outcome.code, "as told")
                return
            if isinstance(outcome, pb.Refusal):
                yield pb.MixStreamResponse(sequence=sequence, refusal=outcome)
            else:
                yield from _in_chunks(sequence, outcome)

    def end(self) -> None:
        """Let nobody wait any more."""
        self._timers.close()
        for batch in list(self._batches.values()):
            _refuse(batch, grpc.StatusCode.CANCELLED)
        self._in_order.put(0)

    def _take(self, message: pb.MixStreamRequest) -> None:
        if message.HasField("request"):
            self._batches[message.sequence] = _Batch(message.request, message.pixel_bytes)
            self._in_order.put(message.sequence)
        batch = self._batches[message.sequence]
        if message.cancel:
            _refuse(batch, grpc.StatusCode.CANCELLED)
            return
        batch.pixels += message.chunk
        if len(batch.pixels) == batch.num_bytes:
            self._timers.after(
                message.timeout_ms / 1000 or 20, lambda: _refuse(batch, grpc.StatusCode.DEADLINE_EXCEEDED)
            )
            batch.request.pixels = bytes(batch.pixels)
            threading.Thread(target=self._answer, args=(batch.request, batch.outcome), daemon=True).start()


def settle(outcome: "Future[Outcome]", value: Outcome) -> None:
    """Set an outcome, unless there is one."""
    with suppress(InvalidStateError):
        outcome.set_result(value)


def refusal(code: grpc.StatusCode, message: str) -> pb.Refusal:
    """Make one of a status."""
    return pb.Refusal(code=code.value[0], message=message)


def _refuse(batch: _Batch, code: grpc.StatusCode) -> None:
    settle(batch.outcome, refusal(code, "the caller waits no more"))


def _in_chunks(sequence: int, response: pb.MixResponse) -> Iterator[pb.MixStreamResponse]:
    pixels = response.pixels
    response.ClearField("pixels")
    yield pb.MixStreamResponse(
        sequence=sequence, response=response, pixel_bytes=len(pixels), chunk=pixels[:CHUNK_BYTES]
    )
    for start in range(CHUNK_BYTES, len(pixels), CHUNK_BYTES):
        yield pb.MixStreamResponse(sequence=sequence, chunk=pixels[start : start + CHUNK_BYTES])
