"""One call that is sent again while that can help, in the background, until its deadline.

An attempt may end in a timeout before that: one replica of several gets half of the time that is left.

gRPC could retry by itself (`retryPolicy`, with `grpc.per_rpc_retry_buffer_size` raised: requests over 256 KiB are not
retried by default). That is switched off because its retries cannot be counted from Python, know no RetryInfo and end
after five attempts. Ours run in the background rather than in `result()`, which a busy trainer may call only after the
deadline has passed.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, Protocol

import grpc

from samix.client.config import ClientConfig
from samix.errors import MixerCancelled, MixerError, MixerOverloaded, MixerTimeout, MixerUnavailable
from samix.status import from_rpc_error

RetryReason = Literal["unavailable", "overloaded", "timeout"]

# A server that is stopped at once cancels what it was answering. Where we closed the connection ourselves, the next
# attempt fails at once.
_WORTH_ANOTHER = (MixerUnavailable, MixerTimeout, MixerCancelled)
_GRACE_S = 1.0  # gRPC reports a passed deadline itself, a little later
_jitter = random.SystemRandom()  # leaves the seeded generators alone, and differs between forks


class ClientObserver(Protocol):
    """Told what a client does, from several threads; must be quick and must not raise."""

    def sent(self, num_bytes: int) -> None:
        """A request of this size is sent, for the first time or again."""

    def received(self, num_bytes: int, seconds: float) -> None:
        """An answer of this size came, so long after its request was first sent."""

    def retried(self, reason: RetryReason) -> None:
        """A request will be sent again."""


class SilentObserver(ClientObserver):
    """Listens to nothing."""


class RetryingCall:
    """One request until its answer. Its deadline runs from when it is made. Safe for threads."""

    def __init__(self, *, target: str, config: ClientConfig, observer: ClientObserver) -> None:
        self._target = target
        self._policy = config.retry
        self._observer = observer
        self._started = time.monotonic()
        self._deadline = self._started + config.deadline_s
        self._lock = threading.Lock()
        self._answer: Future[Any] = Future()
        self._send: Callable[[float], grpc.Future] | None = None
        self._attempt: grpc.Future | None = None
        self._num_attempts = 0
        self._backoff_s = config.retry.initial_backoff_s
        self.num_bytes: int | None = None
        """Of the request; None until it is sent for the first time."""
        self.answer_s: float | None = None
        """How long the answer took, seconds; None until it is there."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be sent or received."""
        return self._answer.done()

    def start(self, send: Callable[[float], grpc.Future], num_bytes: int) -> None:
        """Send the request for the first time.

        Args:
            send: starts one attempt with a time limit in seconds.
            num_bytes: size of the request.

        Raises:
            InputError, MixerCancelled: as `Connection.start` does.
        """
        self._send, self.num_bytes = send, num_bytes
        self._start_attempt(send, num_bytes)

    def fail(self, error: Exception) -> None:
        """End with an error of ours before anything was sent."""
        self._settle(error)

    def result(self) -> Any:
        """Wait for the answer, at most until the deadline.

        Raises:
            MixerError: what went wrong in the end.
        """
        remaining_s = max(self._deadline - time.monotonic(), 0)
        try:
            return self._answer.result(remaining_s + _GRACE_S)
        except TimeoutError:
            error = MixerTimeout(f"mixer at {self._target}: no answer before the deadline")
            self._give_up(error)
            raise error from None

    def cancel(self) -> None:
        """Give up; `result` raises MixerCancelled unless the answer was faster."""
        self._give_up(MixerCancelled(f"mixer at {self._target}: the caller cancelled"))

    def _give_up(self, error: MixerError) -> None:
        self._settle(error)
        if self._attempt is not None:
            self._attempt.cancel()

    def _on_attempt_done(self, attempt: Any) -> None:
        if attempt.code() is grpc.StatusCode.OK:
            response = attempt.result()
            self.answer_s = time.monotonic() - self._started
            self._observer.received(response.ByteSize(), self.answer_s)
            self._settle(response)
            return
        if self._answer.done():  # by `cancel`, or the deadline
            return
        error = from_rpc_error(attempt, self._target)
        pause_s = self._pause_s(error)
        if pause_s is None:
            self._settle(error)
            return
        self._observer.retried(_reason(error))
        timer = threading.Timer(pause_s, self._start_again)
        timer.daemon = True
        timer.start()

    def _pause_s(self, error: MixerError) -> float | None:
        """Say how long to wait before the next attempt, or None where there should be none."""
        pause_s = self._backoff_s * _jitter.uniform(1.0, 1.2)
        self._backoff_s = min(self._backoff_s * self._policy.factor, self._policy.max_backoff_s)
        if isinstance(error, MixerOverloaded):
            pause_s = max(pause_s, error.retry_after_s)
        elif not isinstance(error, _WORTH_ANOTHER) or self._is_exhausted():
            return None
        return pause_s if time.monotonic() + pause_s < self._deadline else None

    def _is_exhausted(self) -> bool:
        return self._policy.attempts is not None and self._num_attempts >= self._policy.attempts

    def _start_again(self) -> None:
        assert self._send is not None
        assert self.num_bytes is not None
        try:
            self._start_attempt(self._send, self.num_bytes)
        except MixerCancelled as error:  # the connection was closed during the pause
            self._settle(error)

    def _start_attempt(self, send: Callable[[float], grpc.Future], num_bytes: int) -> None:
        with self._lock:
            if self._answer.done():
                return
            self._num_attempts += 1
            attempt = send(max(self._deadline - time.monotonic(), 0))
            self._attempt = attempt
        self._observer.sent(num_bytes)
        attempt.add_done_callback(self._on_attempt_done)  # outside the lock: it may run right here

    def _settle(self, outcome: Any) -> None:
        with self._lock:
            if self._answer.done():
                return
            if isinstance(outcome, Exception):
                self._answer.set_exception(outcome)
            else:
                self._answer.set_result(outcome)


def _reason(error: MixerError) -> RetryReason:
    if isinstance(error, MixerOverloaded):
        return "overloaded"
    return "timeout" if isinstance(error, MixerTimeout) else "unavailable"
