"""Batches of one share as they arrive, whichever call and server they come over.

A thread of its own receives. When its call ends too early it opens the next one with the cursor of the last batch that
came, so what the caller takes repeats nothing and skips nothing.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from samix.client.buffers import Buffers
from samix.client.config import RetryPolicy
from samix.client.datasets.assembly import Assembly
from samix.client.datasets.batch import ReadyBatch
from samix.client.datasets.calls import SubscribeCall
from samix.client.datasets.cursor import Cursor, Place, cursor_message
from samix.client.datasets.share import Share
from samix.client.replicas import Replica, Replicas
from samix.client.retrying import ClientObserver, RetryReason
from samix.client.unary import closed_error
from samix.errors import MixerBroken, MixerCancelled, MixerError, MixerOverloaded, MixerTimeout, MixerUnavailable
from samix.mixer.v1 import dataset_pb2 as pb
from samix.request_keys import RequestKeys

log = logging.getLogger(__name__)

# CANCELLED is what a consumer hears that took nothing for longer than its lease, or whose server is stopped at once.
_WORTH_ANOTHER = (MixerUnavailable, MixerTimeout, MixerCancelled, MixerOverloaded)
_JOIN_S = 2.0
_KEYS = RequestKeys()
_jitter = random.SystemRandom()  # leaves the seeded generators alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How far a feed reads ahead, and how long it waits."""

    depth: int
    """Batches that may be on their way or wait for the caller."""
    timeout_s: float
    """Longest a caller waits for a batch, new connections included, in seconds."""
    retry: RetryPolicy
    """Pauses between connections; their number is limited by `timeout_s` alone."""


class Feed:
    """Receives in order. `take` is for one thread at a time, `close` for any."""

    def __init__(
        self, replicas: Replicas, share: Share, place: Place, patience: Patience, observer: ClientObserver
    ) -> None:
        self._replicas = replicas
        self._share = share
        self._token = place.token
        self._cursor: Cursor | None = place.cursor
        self._patience = patience
        self._observer = observer
        self._changed = threading.Condition()
        self._buffers = Buffers()
        self._ready: deque[ReadyBatch] = deque()
        self._skipped: tuple[str, ...] = ()
        self._thread: threading.Thread | None = None
        self._call: SubscribeCall | None = None
        self._terms: pb.SubscriptionTerms | None = None
        self._heard_s = 0.0
        self._backoff_s = patience.retry.initial_backoff_s
        self._lost: MixerError | None = None
        self._failure: Exception | None = None
        self._has_ended = False

    def take(self) -> ReadyBatch | None:
        """Return the next batch, or None after the last one of the epoch.

        Raises:
            MixerError: what went wrong for good; again and again, once it did.
            InputError: in a fork of the process that began.
        """
        self._wait_for(lambda: bool(self._ready))
        with self._changed:
            if self._ready:
                if self._call is not None:
                    self._call.grant(1)
                self._changed.notify_all()
                return self._ready.popleft()
            if self._failure is not None:
                raise self._failure
            return None

    def terms(self) -> pb.SubscriptionTerms:
        """Return what the server says of the epoch.

        Raises:
            MixerError, InputError: as `take` does.
        """
        self._wait_for(lambda: self._terms is not None)
        if self._terms is None:
            raise self._failure or MixerBroken(f"mixer at {self._replicas.target}: no terms came")
        return self._terms

    def close(self, *, waits: bool = True) -> None:
        """End: `take` raises MixerCancelled from then on, unless the epoch is over.

        Args:
            waits: for the thread to end, a little while.
        """
        with self._changed:
            self._ready.clear()
            self._fail(MixerCancelled(f"the subscription of {self._share} was closed; subscribe again"))
            thread = self._thread
        if waits and thread not in (None, threading.current_thread()):
            thread.join(_JOIN_S)

    def _wait_for(self, has_come: Callable[[], bool]) -> None:
        self._replicas.check_process()  # before the lock, which the parent may have held at the fork
        began_s, timeout_s = time.monotonic(), self._patience.timeout_s
        with self._changed:
            if self._thread is None and not self._has_ended:
                self._thread = threading.Thread(target=self._run, name="dataset-feed", daemon=True)
                self._thread.start()
            while not has_come() and not self._has_ended:
                now_s = time.monotonic()
                left_s = began_s + timeout_s - now_s
                if left_s <= 0:
                    self._fail(self._give_up_error())
                    return
                self._leave_if_silent(now_s - max(began_s, self._heard_s))
                self._changed.wait(min(left_s, timeout_s / 4))

    def _leave_if_silent(self, silent_s: float) -> None:
        """Give a server up that says nothing, while there is time for another one."""
        if self._call is not None and self._replicas.has_several and silent_s > self._patience.timeout_s / 2:
            self._call.cancel(MixerTimeout(f"mixer at {self._call.target}: nothing came for {silent_s:.1f} s"))

    def _give_up_error(self) -> MixerError:
        waited = f"no batch of {self._share} came within {self._patience.timeout_s:g} s"
        if isinstance(self._lost, MixerUnavailable):
            return MixerUnavailable(f"{self._lost}; {waited}")
        return MixerTimeout(f"mixer at {self._replicas.target}: {waited}{f' ({self._lost})' if self._lost else ''}")

    def _fail(self, error: Exception) -> None:
        """End with an error, unless it has ended; what came before may still be taken."""
        with self._changed:
            if not self._has_ended:
                self._failure, self._has_ended = error, True
            if self._call is not None:
                self._call.cancel()
            self._changed.notify_all()

    def _run(self) -> None:
        """Receive over one call after the other, until the epoch is over or something is wrong for good."""
        try:
            while self._has_room() and not self._receive():
                pass
        except Exception as error:  # noqa: BLE001 - the edge of this thread: `take` raises it
            self._fail(error)
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until the caller has taken enough; False if it takes no more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._patience.depth or self._has_ended)
            return not self._has_ended

    def _receive(self) -> bool:
        """Receive over one call until that ends; say whether it was the end of the epoch.

        Raises:
            MixerError: if another call would not help.
            InputError: in a fork.
        """
        replica = self._replicas.choose()
        call = self._open(replica)
        try:
            self._read(call, replica)
            return True
        except _WORTH_ANOTHER as error:
            self._replicas.note(replica, error)
            self._pause(error)
            return False
        finally:
            with self._changed:
                self._call = None

    def _open(self, replica: Replica) -> SubscribeCall:
        line = replica.connection.line()
        cursor = None if self._cursor is None else cursor_message(self._cursor)
        with self._changed:
            room = self._patience.depth - len(self._ready)
            try:
                call = SubscribeCall(line, self._share.message(self._token, cursor), room, _KEYS.next())
            except ValueError as error:  # gRPC's answer when another thread closes the channel right now
                raise closed_error(line.target) from error
            self._call, self._heard_s = call, time.monotonic()
            if self._has_ended:
                call.cancel()
        return call

    def _read(self, call: SubscribeCall, replica: Replica) -> None:
        assembly = Assembly(self._share, self._buffers, 0 if self._cursor is None else self._cursor["num_batches"])
        with closing(call.messages()) as messages:
            for data in messages:
                self._heard_s = time.monotonic()
                try:
                    batch = assembly.add(data)
                except (MixerBroken, DecodeError) as error:
                    raise MixerBroken(f"mixer at {call.target}: its batches cannot be read ({error})") from error
                if batch is not None:
                    self._put(batch, call)
                    del batch  # or its buffer would be in use until the next one is whole
                elif self._terms is None or self._lost is not None:
                    self._note_terms(assembly, replica)
        if not assembly.is_over:
            raise MixerBroken(f"mixer at {call.target}: the epoch ended after {assembly.num_done} batches, too early")

    def _note_terms(self, assembly: Assembly, replica: Replica) -> None:
        with self._changed:
            self._terms, self._lost = assembly.terms, None
            self._changed.notify_all()
        self._replicas.note(replica, None)

    def _put(self, batch: ReadyBatch, call: SubscribeCall) -> None:
        with self._changed:
            self._cursor = batch.cursor
            self._backoff_s = self._patience.retry.initial_backoff_s
            self._skipped += batch.skipped
            if len(batch) == 0:  # none of its samples could be read
                call.grant(1)
                return
            if self._has_ended:
                return
            self._ready.append(replace(batch, skipped=self._skipped))
            self._skipped = ()
            self._changed.notify_all()

    def _pause(self, error: MixerError) -> None:
        """Wait before the next call."""
        pause_s = self._backoff_s * _jitter.uniform(1.0, 1.2)
        self._backoff_s = min(self._backoff_s * self._patience.retry.factor, self._patience.retry.max_backoff_s)
        if isinstance(error, MixerOverloaded):
            pause_s = max(pause_s, error.retry_after_s)
        with self._changed:
            if self._has_ended:
                return
            self._lost = error
        done = 0 if self._cursor is None else self._cursor["num_batches"]
        log.info("subscription_resumes share=%s after=%s pause_s=%.2f reason=%s", self._share, done, pause_s, error)
        self._observer.retried(_reason(error))
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended, pause_s)


def _reason(error: MixerError) -> RetryReason:
    if isinstance(error, MixerOverloaded):
        return "overloaded"
    return "timeout" if isinstance(error, MixerTimeout) else "unavailable"
