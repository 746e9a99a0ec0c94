"""One stream of mixes: batches go up in chunks within the server's credit, answers come down in the same order.

Two threads belong to a stream: gRPC's own, which sends what `_messages` yields, and the one that reads answers.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from samix.client.attempts import Attempt, Outcome
from samix.client.config import StreamPolicy
from samix.client.timers import Timers
from samix.client.unary import SERVICE, Line
from samix.errors import MixerBroken, MixerCancelled, MixerError, MixerUnavailable
from samix.framing import Framed, as_bytes, chunks, empty_buffer, join, split
from samix.mixer.v1 import mixer_pb2 as pb
from samix.status import from_refusal, from_rpc_error

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""Largest chunk that is sent: with 0.5 to 2 MB a batch is quickest, and any peer takes messages up to 4 MB."""

_HANG_UP_S = 2.0  # how long a stream with nothing left to answer may take to end


class StreamAttempt(Attempt):
    """A mix on its way over a stream."""

    def __init__(self, request: Framed[pb.MixRequest], timeout_s: float) -> None:
        self.request = request
        """What is sent."""
        self.stream: Stream | None = None
        """Which stream it is on."""
        self._expires_s = time.monotonic() + timeout_s
        self._outcome: Future[Outcome] = Future()

    @property
    def remaining_s(self) -> float:
        """How long its caller still waits, in seconds."""
        return max(self._expires_s - time.monotonic(), 0.0)

    @property
    def is_done(self) -> bool:
        """Whether it has an outcome."""
        return self._outcome.done()

    @property
    def outcome(self) -> Outcome:
        """What became of it; only once it is done."""
        return self._outcome.result(0)

    def add_done_callback(self, callback: Callable[[Attempt], object]) -> None:
        """Call back when there is an outcome."""
        self._outcome.add_done_callback(lambda _: callback(self))

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome, unless there is one."""
        with suppress(InvalidStateError):
            self._outcome.set_result(outcome)

    def follow(self, other: Attempt) -> None:
        """Take the outcome of another attempt at the same request."""
        self.add_done_callback(lambda _: other.cancel())
        other.add_done_callback(lambda done: self.settle(done.outcome))

    def cancel(self) -> None:
        """Give up; the server is told to drop the work."""
        self.settle(MixerCancelled("the caller cancelled"))
        if self.stream is not None:
            self.stream.give_up(self)


class _Answer:
    """An answer while its chunks come in."""

    def __init__(self, message: pb.MixResponse, num_bytes: int) -> None:
        self.message = message
        self.pixels = empty_buffer(num_bytes)
        self.filled = 0

    def add(self, chunk: memoryview) -> bool:
        """Take the next bytes; False if they are more than was said."""
        end = self.filled + len(chunk)
        if end > len(self.pixels):
            return False
        self.pixels[self.filled : end] = np.frombuffer(chunk, np.uint8)
        self.filled = end
        return True

    @property
    def is_whole(self) -> bool:
        return self.filled == len(self.pixels)


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
            self._changed.notify_all()
        return True

    def give_up(self, attempt: StreamAttempt) -> None:
        """Tell the server that nobody waits for this batch any more."""
        with self._changed:
            if attempt in self._unsent:
                self._unsent.remove(attempt)
            else:
                self._given_up.append(attempt)
            self._changed.notify_all()

    def retire(self) -> None:
        """Take no more batches, and end when all that were sent are answered, or given up."""
        with self._changed:
            self._is_retired = True
            self._changed.notify_all()
            is_idle = all(attempt.is_done for attempt in (*self._sent, *self._unsent))
        if is_idle:
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
            is_busy = self._sent or self._unsent
            idle_s = 0.0 if is_busy else time.monotonic() - self._busy_s
            if self._has_ended or idle_s >= self._idle_s:
                self._is_retired = True
                self._changed.notify_all()
                return
        with suppress(MixerCancelled):  # closed meanwhile
            self._timers.after(self._idle_s - idle_s, self._check_idle)

    def _messages(self) -> Iterator[bytes]:
        """Yield what goes up, until there is nothing more to say."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_something_to_do)
                if self._has_ended or (self._has_sent_all() and not self._given_up):
                    return
                given_up, attempt = self._next_to_send()
            if given_up:
                yield pb.MixStreamRequest(sequence=given_up, cancel=True).SerializeToString()
            elif attempt is not None:
                yield from self._batch(*attempt)

    def _has_something_to_do(self) -> bool:
        return self._can_send() or bool(self._given_up) or self._has_ended or self._has_sent_all()

    def _can_send(self) -> bool:
        return bool(self._unsent) and len(self._sent) < self._credits and self._num_sent < self._max_batches

    def _has_sent_all(self) -> bool:
        return self._is_retired and (not self._unsent or self._num_sent >= self._max_batches)

    def _next_to_send(self) -> tuple[int, tuple[int, StreamAttempt] | None]:
        if self._given_up:
            attempt = self._given_up.popleft()
            return (self._first + self._sent.index(attempt) if attempt in self._sent else 0), None
        if not self._can_send():
            return 0, None
        attempt = self._unsent.popleft()
        if attempt.is_done:
            return 0, None
        self._sent.append(attempt)
        self._num_sent += 1
        return 0, (self._num_sent, attempt)

    def _batch(self, sequence: int, attempt: StreamAttempt) -> Iterator[bytes]:
        request = attempt.request
        message = pb.MixStreamRequest(
            sequence=sequence,
            request=request.message,
            pixel_bytes=len(request.bulk),
            timeout_ms=max(1, round(1000 * attempt.remaining_s)),
        )
        for chunk in chunks(request.bulk, self._chunk_bytes):
            yield join(message, chunk)
            message = pb.MixStreamRequest(sequence=sequence)
            if attempt.is_done:  # given up in the middle: its cancel message ends it
                return

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
            self._settle(Framed(self._answer.message, as_bytes(self._answer.pixels)))

    def _read_terms(self, message: pb.MixStreamResponse) -> None:
        with self._changed:
            if message.HasField("terms"):
                terms = message.terms
                self._credits = max(1, terms.credits)
                self._max_batches = min(self._max_batches, terms.max_batches or self._max_batches)
                self._chunk_bytes = min(self._chunk_bytes, terms.max_chunk_bytes or self._chunk_bytes)
            self._is_retired |= message.is_ending or self._num_taken >= self._max_batches
            self._changed.notify_all()

    def _settle(self, outcome: Outcome) -> None:
        self._answer = None
        with self._changed:
            attempt = self._sent.popleft()
            self._first += 1
            self._busy_s = time.monotonic()
            self._changed.notify_all()
        attempt.settle(outcome)

    def _end(self) -> None:
        with self._changed:
            self._has_ended = True
            sent, unsent = list(self._sent), list(self._unsent)
            self._sent.clear()
            self._unsent.clear()
            self._changed.notify_all()
        reason = self._failure or MixerUnavailable(f"mixer at {self._line.target}: the stream ended before the answer")
        for attempt in sent:
            attempt.settle(reason)
        self._on_end(self, [attempt for attempt in unsent if not attempt.is_done], self._failure)
