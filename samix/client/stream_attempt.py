"""A mix on its way over a stream, whichever stream it is on by now."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

from samix.client.attempts import Attempt, Outcome
from samix.errors import MixerCancelled
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb


class Carrier(Protocol):
    """The stream that a mix is on."""

    def give_up(self, attempt: "StreamAttempt") -> None:
        """Hear that nobody waits for it any more."""

    def retire(self) -> None:
        """Take no more mixes."""


class StreamAttempt(Attempt):
    """A mix on its way over a stream."""

    def __init__(self, request: Framed[pb.MixRequest], timeout_s: float) -> None:
        self.request = request
        """What is sent."""
        self.stream: Carrier | None = None
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
