"""One stream of mixes: batches go up in chunks within the server's credit, answers come down in the same order.

Two threads belong to a stream: gRPC's own, which sends what `_messages` yields, and the one that reads answers.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from samix.client.attempts import Answer, Outcome
from samix.client.config import StreamPolicy
from samix.client.stream_attempt import StreamAttempt
from samix.client.timers import Timers
from samix.client.unary import SERVICE, Line
from samix.errors import MixerBroken, MixerCancelled, MixerError, MixerUnavailable
from samix.framing import Framed, chunks, join, split
from samix.mixer.v1 import mixer_pb2 as pb
from samix.pieces import Pieces, Scattered
from samix.status import from_refusal, from_rpc_error

log = logging.getLogger(__name__)

CHUNK_BYTES = 2 << 20
"""Largest chunk that is sent: with 1 to 2 MiB a batch is quickest, and any peer takes messages up to 4 MB."""

_HANG_UP_S = 2.0  # how long a stream with nothing left to answer may take to end
_LONGEST_MS = 2**32 - 1  # that the wire can say: 49 days


class _Answer:
    """An answer while its chunks come in."""

    def __init__(self, message: pb.MixResponse, num_bytes: int) -> None:
        self.message = message
        self.pixels = Pieces()
        self._num_bytes = num_bytes

    def add(self, chunk: memoryview) -> bool:
        """Take the next bytes; False if they are more than was said."""
        self.pixels.add(chunk)
        return len(self.pixels) <= self._num_bytes

    @property
    def is_whole(self) -> bool:
        return len(self.pixels) == self._num_bytes

    @property
    def outcome(self) -> Answer:
        return Scattered(self.message, self.pixels) if self._num_bytes else Framed(self.message)


class Stream:
    """Sends and receives; `on_end` hears once, at its end, what was never sent and why the stream ended."""

    def __init__(
        self,
        line: Line,
        policy: StreamPolicy,
        *,
        timers: Timers,
        max_answer_bytes: int,
        on_end: Callable[["Stream", Sequence[StreamAttempt], MixerError | None], None],
    ) -> None:
        self.is_unsupported = False
        """Whether it ended because the server has no streams."""
        self._line = line
        self._max_batches = policy.max_batches
        self._idle_s = policy.idle_s
        self._timers = timers
        self._max_answer_bytes = max_answer_bytes
        self._on_end = on_end
        self._changed = threading.Condition()
        self._unsent: deque[StreamAttempt] = deque()
        self._sent: deque[StreamAttempt] = deque()  # those before `_first` are answered
        self._first = 1
        self._given_up: deque[StreamAttempt] = deque()
        self._num_taken = 0
        self._num_sent = 0
        self._credits = 0  # until the server has said its terms
        self._chunk_bytes = CHUNK_BYTES
        self._is_retired = False
        self._has_ended = False
        self._is_hung_up = False
        self._busy_s = time.monotonic()
        self._answer: _Answer | None = None
        self._failure: MixerError | None = None
        self._call: Any = None

    def open(self) -> None:
        """Open the stream.

        Raises:
            ValueError: if the channel is closed.
        """
        self._call = self._line.channel.stream_stream(f"{SERVICE}MixStream")(
            self._messages(), metadata=self._line.metadata
        )
        threading.Thread(target=self._receive, name="mix-stream", daemon=True).start()
        self._timers.after(self._idle_s, self._check_idle)

    def put(self, attempt: StreamAttempt) -> bool:
        """Take a batch; False once the stream takes no more."""
        with self._changed:
            if self._is_retired or self._has_ended:
                return False
            attempt.stream = self
            self._unsent.append(attempt)
            self._num_taken += 1
            self._is_retired = self._num_taken >= self._max_batches
            self._wake()
        return True

    def give_up(self, attempt: StreamAttempt) -> None:
        """Tell the server that nobody waits for this batch any more."""
        with self._changed:
            if attempt in self._unsent:
                self._unsent.remove(attempt)
            elif not self._has_ended:
                self._given_up.append(attempt)
            self._changed.notify_all()

    def retire(self) -> None:
        """Take no more batches, and end when all that were sent are answered, or given up."""
        with self._changed:
            self._is_retired = True
            self._changed.notify_all()
            if self._is_idle():
                with suppress(MixerCancelled):  # closed meanwhile
                    self._timers.after(_HANG_UP_S, self._hang_up)

    def close(self, error: MixerError) -> None:
        """End at once; what is under way ends with `error`."""
        with self._changed:
            self._failure = self._failure or error
        self._call.cancel()

    def _hang_up(self) -> None:
        """End a stream whose peer does not end it; of no effect on one that has ended by then."""
        self._is_hung_up = True
        self._call.cancel()

    def _check_idle(self) -> None:
        with self._changed:
            idle_s = time.monotonic() - self._busy_s if self._is_idle() else 0.0
            if self._has_ended:
                return
            if idle_s >= self._idle_s:
                self.retire()
                return
        with suppress(MixerCancelled):  # closed meanwhile
            self._timers.after(self._idle_s - idle_s, self._check_idle)

    def _is_idle(self) -> bool:
        return all(attempt.is_done for attempt in (*self._sent, *self._unsent))

    def _messages(self) -> Iterator[bytes]:
        """Yield what goes up, until there is nothing more to say."""
        while (messages := self._next()) is not None:
            yield from messages

    def _next(self) -> Iterator[bytes] | None:
        """Wait for what goes up next, at most until the stream ends; None if that is nothing more."""
        with self._changed:
            self._changed.wait_for(self._has_something_to_do)
            if self._has_ended or (self._has_sent_all() and not self._given_up):
                return None
            if self._given_up:
                attempt = self._given_up.popleft()
                is_waiting = attempt in self._sent  # else its answer was faster
                return iter([_cancel_message(self._first + self._sent.index(attempt))] if is_waiting else [])
            attempt = self._unsent.popleft()
            if attempt.is_done:
                return iter(())
            self._sent.append(attempt)
            self._num_sent += 1
            return self._batch(self._num_sent, attempt)

    def _has_something_to_do(self) -> bool:
        return self._can_send() or bool(self._given_up) or self._has_ended or self._has_sent_all()

    def _wake(self) -> None:
        """Wake the sender if there is something to do; for nothing it would cost a tenth of what a JPEG batch takes."""
        if self._has_something_to_do():
            self._changed.notify_all()

    def _can_send(self) -> bool:
        return bool(self._unsent) and len(self._sent) < self._credits and self._num_sent < self._max_batches

    def _has_sent_all(self) -> bool:
        return self._is_retired and (not self._unsent or self._num_sent >= self._max_batches)

    def _batch(self, sequence: int, attempt: StreamAttempt) -> Iterator[bytes]:
        request = attempt.request
        message = pb.MixStreamRequest(
            sequence=sequence,
            request=request.message,
            pixel_bytes=len(request.bulk),
            timeout_ms=max(1, round(min(1000 * attempt.remaining_s, _LONGEST_MS))),
        )
        for chunk in chunks(request.bulk, self._chunk_bytes):
            if attempt.is_done and not message.HasField("request"):
                # Given up, late or refused in the middle: the next batch may begin once this one is over.
                yield _cancel_message(sequence)
                return
            yield join(message, chunk)
            message = pb.MixStreamRequest(sequence=sequence)

    def _receive(self) -> None:
        """Read answers until the stream ends, however it does."""
        try:
            for data in self._call:
                self._read(data)
        except grpc.RpcError as error:
            self.is_unsupported = self._call.code() is grpc.StatusCode.UNIMPLEMENTED
            if not self._is_hung_up:
                self._failure = self._failure or from_rpc_error(error, self._line.target)
        except (DecodeError, MixerBroken) as error:
            self._failure = MixerBroken(f"mixer at {self._line.target}: its stream cannot be read ({error})")
            self._call.cancel()
        finally:
            self._end()

    def _read(self, data: bytes) -> None:
        framed = split(pb.MixStreamResponse, data)
        message = framed.message
        if message.sequence == 0:
            self._read_terms(message)
            return
        if message.sequence != self._first or not self._sent:
            raise MixerBroken(f"batch {message.sequence} was answered, {self._first} is next")
        if message.HasField("refusal"):
            error = from_refusal(message.refusal, self._line.target)
            if isinstance(error, MixerUnavailable):
                self.retire()  # the next stream may reach another address of the name
            self._settle(error)
            return
        if message.HasField("response"):
            if message.pixel_bytes > self._max_answer_bytes:
                raise MixerBroken(f"an answer of {message.pixel_bytes} bytes is announced, over max_message_bytes")
            self._answer = _Answer(message.response, message.pixel_bytes)
        if self._answer is None or not self._answer.add(framed.bulk):
            raise MixerBroken(f"a chunk of batch {message.sequence} is not part of its answer")
        if self._answer.is_whole:
            self._settle(self._answer.outcome)

    def _read_terms(self, message: pb.MixStreamResponse) -> None:
        with self._changed:
            if message.HasField("terms"):
                terms = message.terms
                self._credits = max(1, terms.credits)
                self._max_batches = min(self._max_batches, terms.max_batches or self._max_batches)
                self._chunk_bytes = min(self._chunk_bytes, terms.max_chunk_bytes or self._chunk_bytes)
            if message.is_ending:
                self._max_batches = self._num_sent  # the others go over the next stream
            self._is_retired |= self._num_taken >= self._max_batches
            self._changed.notify_all()

    def _settle(self, outcome: Outcome) -> None:
        self._answer = None
        with self._changed:
            attempt = self._sent.popleft()
            self._first += 1
            self._busy_s = time.monotonic()
            self._wake()
        attempt.settle(outcome)

    def _end(self) -> None:
        with self._changed:
            self._has_ended = True
            sent, unsent = list(self._sent), list(self._unsent)
            self._sent.clear()
            self._unsent.clear()
            self._given_up.clear()
            self._changed.notify_all()
        reason = self._failure or MixerUnavailable(f"mixer at {self._line.target}: the stream ended before the answer")
        for attempt in sent:
            attempt.settle(reason)
        # After a stream that took nothing another one would most likely take nothing either, and so on without a pause.
        failure = self._failure if self._num_sent else reason
        self._on_end(self, [attempt for attempt in unsent if not attempt.is_done], failure)


def _cancel_message(sequence: int) -> bytes:
    return pb.MixStreamRequest(sequence=sequence, cancel=True).SerializeToString()
