"""Mixes of one connection over streams: one is open at a time, and a new one follows when it has had its share.

Streams are short leases: after some batches, or when they idle, they are half-closed. So load spreads again over the
addresses of a name, and a client that does nothing holds no thread of the server.
"""

import logging
import threading
from collections.abc import Sequence

from samix.client.attempts import Attempt
from samix.client.config import StreamPolicy
from samix.client.stream import Stream
from samix.client.stream_attempt import StreamAttempt
from samix.client.timers import Timers
from samix.client.unary import Line, closed_error, start_unary
from samix.errors import MixerError, MixerTimeout
from samix.framing import Framed

log = logging.getLogger(__name__)

_GRACE_S = 0.5  # the server knows the deadline and says itself that it has passed, a little later


class Streams:
    """The streams of one channel. Safe for threads."""

    def __init__(self, line: Line, policy: StreamPolicy, *, timers: Timers, max_answer_bytes: int) -> None:
        self._line = line
        self._policy = policy
        self._timers = timers
        self._max_answer_bytes = max_answer_bytes
        self._lock = threading.Lock()
        self._current: Stream | None = None
        self._open_streams: set[Stream] = set()
        self._is_unsupported = False
        self._is_closed = False

    def start(self, request: Framed, timeout_s: float) -> Attempt:
        """Send a mix on the current stream, or on a new one.

        Raises:
            ValueError: if the streams or the channel are closed.
        """
        if self._is_unsupported:
            return start_unary(self._line, "Mix", request, timeout_s)
        attempt = StreamAttempt(request, timeout_s)
        timer = self._timers.after(timeout_s + _GRACE_S, lambda: self._expire(attempt))
        attempt.add_done_callback(lambda _: timer.cancel())
        self._put(attempt)
        return attempt

    def close(self) -> None:
        """End all streams; what is under way is cancelled."""
        with self._lock:
            self._is_closed = True
            streams = list(self._open_streams)
        for stream in streams:
            stream.close(closed_error(self._line.target))

    def _put(self, attempt: StreamAttempt) -> None:
        with self._lock:
            if self._is_closed:
                raise ValueError("the streams are closed")
            if self._current is None or not self._current.put(attempt):
                self._current = self._open(attempt)

    def _open(self, first: StreamAttempt) -> Stream:
        stream = Stream(
            self._line,
            self._policy,
            timers=self._timers,
            max_answer_bytes=self._max_answer_bytes,
            on_end=self._ended,
        )
        stream.put(first)  # before it can end
        self._open_streams.add(stream)
        try:
            stream.open()
        except ValueError:
            self._open_streams.discard(stream)
            raise
        return stream

    def _expire(self, attempt: StreamAttempt) -> None:
        attempt.settle(MixerTimeout(f"mixer at {self._line.target}: no answer before the deadline"))
        if attempt.stream is not None:
            attempt.stream.retire()  # it may hang; others get a new one

    def _ended(self, stream: Stream, unsent: Sequence[StreamAttempt], error: MixerError | None) -> None:
        """Hear that a stream is over; what it never sent goes to the next one, unless streams cannot be had."""
        with self._lock:
            self._open_streams.discard(stream)
            if self._current is stream:
                self._current = None
        if stream.is_unsupported and not self._is_unsupported:
            self._is_unsupported = True
            log.info("mixer_without_streams target=%s", self._line.target)
        for attempt in unsent:
            self._send_elsewhere(attempt, error)

    def _send_elsewhere(self, attempt: StreamAttempt, error: MixerError | None) -> None:
        try:
            if self._is_unsupported:
                attempt.follow(start_unary(self._line, "Mix", attempt.request, attempt.remaining_s))
            elif error is not None:
                attempt.settle(error)
            else:
                self._put(attempt)
        except ValueError:
            attempt.settle(closed_error(self._line.target))
