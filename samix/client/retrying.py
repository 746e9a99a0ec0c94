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
from concurrent.futures import Future
from typing import Literal, Protocol

from samix.client.attempts import Answer, Attempt, Outcome
from samix.client.config import ClientConfig
from samix.client.hedging import Hedging
from samix.client.timers import Timers
from samix.errors import (
    BadBatch,
    MixerCancelled,
    MixerError,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
    NotTrusted,
)
from samix.tracing import Span

RetryReason = Literal["unavailable", "overloaded", "timeout"]

# A server that is stopped at once cancels what it was answering. Where we closed the connection ourselves, the next
# attempt fails at once.
_WORTH_ANOTHER = (MixerUnavailable, MixerTimeout, MixerCancelled)
_TRUST_ATTEMPTS = 4  # another replica may be better, but waiting makes none so
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

    def hedged(self) -> None:
        """A request that waits for one replica was sent to a second one."""


class SilentObserver(ClientObserver):
    """Listens to nothing."""


class Sender(Protocol):
    """Sends one request, as often as it is told to."""

    def start(self, timeout_s: float) -> Attempt:
        """Send it.

        Raises:
            InputError, MixerCancelled: as `Connection.start` does.
        """
        ...

    def start_elsewhere(self, timeout_s: float) -> Attempt | None:
        """Send it to another server than the last one; None where there is no other.

        Raises:
            InputError, MixerCancelled: as `Connection.start` does.
        """
        ...


class RetryingCall:
    """One request until its answer. Its deadline runs from when it is made. Safe for threads."""

    def __init__(
        self,
        *,
        target: str,
        config: ClientConfig,
        observer: ClientObserver,
        timers: Timers,
        hedging: Hedging | None = None,
        span: Span | None = None,
    ) -> None:
        self._span = span
        self._target = target
        self._policy = config.retry
        self._observer = observer
        self._timers = timers
        self._hedging = hedging
        self._started = time.monotonic()
        self._deadline = self._started + config.deadline_s
        self._lock = threading.Lock()
        self._answer: Future[Answer] = Future()
        self._sender: Sender | None = None
        self._first_sent = self._started
        self._under_way: list[Attempt] = []
        self._is_answered = False
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

    def start(self, sender: Sender, num_bytes: int) -> None:
        """Send the request for the first time.

        Args:
            sender: sends it.
            num_bytes: size of the request.

        Raises:
            InputError, MixerCancelled: as `Connection.start` does.
        """
        self._sender, self.num_bytes, self._first_sent = sender, num_bytes, time.monotonic()
        self._start_attempt(sender)
        self._watch()

    def fail(self, error: Exception) -> None:
        """End with an error of ours before anything was sent."""
        self._settle(error)

    def result(self) -> Answer:
        """Wait for the answer, at most until the deadline.

        Raises:
            MixerError: what went wrong in the end.
        """
        try:
            return self._answer.result(self._remaining_s + _GRACE_S)
        except TimeoutError:
            error = MixerTimeout(f"mixer at {self._target}: no answer before the deadline")
            self._give_up(error)
            raise error from None

    def cancel(self) -> None:
        """Give up; `result` raises MixerCancelled unless the answer was faster."""
        self._give_up(MixerCancelled(f"mixer at {self._target}: the caller cancelled"))

    def _give_up(self, error: MixerError) -> None:
        self._settle(error)
        with self._lock:
            attempts = list(self._under_way)
        for attempt in attempts:
            attempt.cancel()

    def _watch(self) -> None:
        """Hedge later, should it take long by then."""
        slow_s = None if self._hedging is None else self._hedging.start()
        if slow_s is None or self._answer.done():
            return
        timer = self._timers.after(slow_s, self._hedge)
        self._answer.add_done_callback(lambda _: timer.cancel())

    def _hedge(self) -> None:
        assert self._sender is not None
        assert self._hedging is not None
        with self._lock:
            # During a pause nothing is slow. The next attempt goes to the next replica anyway.
            if self._answer.done() or not self._under_way or not self._hedging.is_affordable:
                return
            attempt = self._sender.start_elsewhere(self._remaining_s)
            if attempt is None:
                return
            self._under_way.append(attempt)
        self._hedging.spend()
        self._observer.hedged()
        if self._span is not None:
            self._span.event("hedge")
        self._listen(attempt)

    def _on_attempt_done(self, attempt: Attempt) -> None:
        outcome = attempt.outcome
        with self._lock:
            self._under_way.remove(attempt)
            others = list(self._under_way)
            is_late = self._is_answered or self._answer.done()  # by another attempt, `cancel`, or the deadline
            self._is_answered |= not isinstance(outcome, MixerError)
        if is_late:
            return
        if not isinstance(outcome, MixerError):
            self._take(outcome)
        elif others and not isinstance(outcome, BadBatch):
            return  # they may still answer, but for a batch that nobody would mix
        else:
            self._retry(outcome)
        for other in others:
            other.cancel()

    def _take(self, answer: Answer) -> None:
        now = time.monotonic()
        self.answer_s = now - self._started
        if self._hedging is not None:
            self._hedging.answered(now - self._first_sent)
        self._observer.received(answer.num_bytes, self.answer_s)
        self._settle(answer)

    def _retry(self, error: MixerError) -> None:
        pause_s = self._pause_s(error)
        if pause_s is None:
            self._settle(error)
            return
        self._observer.retried(_reason(error))
        if self._span is not None:
            self._span.event("retry", reason=str(error), pause_s=pause_s)
        try:
            self._timers.after(pause_s, self._start_again)
        except MixerCancelled as closed:
            self._settle(closed)

    def _pause_s(self, error: MixerError) -> float | None:
        """Say how long to wait before the next attempt, or None where there should be none."""
        pause_s = self._backoff_s * _jitter.uniform(1.0, 1.2)
        self._backoff_s = min(self._backoff_s * self._policy.factor, self._policy.max_backoff_s)
        if isinstance(error, MixerOverloaded):
            pause_s = max(pause_s, error.retry_after_s)
        elif not isinstance(error, _WORTH_ANOTHER) or self._is_exhausted(error):
            return None
        return pause_s if time.monotonic() + pause_s < self._deadline else None

    def _is_exhausted(self, error: MixerError) -> bool:
        if isinstance(error, NotTrusted) and self._num_attempts >= _TRUST_ATTEMPTS:
            return True
        return self._policy.attempts is not None and self._num_attempts >= self._policy.attempts

    def _start_again(self) -> None:
        assert self._sender is not None
        try:
            self._start_attempt(self._sender)
        except MixerError as error:  # the connection was closed during the pause, for example
            self._settle(error)

    def _start_attempt(self, sender: Sender) -> None:
        with self._lock:
            if self._answer.done():
                return
            self._num_attempts += 1
            attempt = sender.start(self._remaining_s)
            self._under_way.append(attempt)
        self._listen(attempt)

    def _listen(self, attempt: Attempt) -> None:
        assert self.num_bytes is not None
        self._observer.sent(self.num_bytes)
        attempt.add_done_callback(self._on_attempt_done)  # outside the lock: it may run right here

    @property
    def _remaining_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0)

    def _settle(self, outcome: Outcome | Exception) -> None:
        with self._lock:
            if self._answer.done():
                return
            if self._span is not None:  # first: with the answer a program may be over, and its tracing
                self._span.end(str(outcome) if isinstance(outcome, Exception) else "")
            if isinstance(outcome, Exception):
                self._answer.set_exception(outcome)
            else:
                self._answer.set_result(outcome)


def _reason(error: MixerError) -> RetryReason:
    if isinstance(error, MixerOverloaded):
        return "overloaded"
    return "timeout" if isinstance(error, MixerTimeout) else "unavailable"
