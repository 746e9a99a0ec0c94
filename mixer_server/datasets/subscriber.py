"""One open Subscribe: reads credits on one thread, writes batches on another."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from mixer_server.datasets.batch import Batch, Making, ReadyToSend, footprint_bytes
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.feed import Feed
from mixer_server.datasets.messages import batch_messages
from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.front.edge import parse
from mixer_server.front.patience import Patience
from samix.errors import BadBatch, MixerBroken, MixerCancelled, MixerError, MixerOverloaded, MixerUnavailable
from samix.mixer.v1 import dataset_pb2 as pb

log = logging.getLogger(__name__)

METHOD = "Subscribe"
MAX_UP_BYTES = 1 << 14
"""Longest message of a client: names and numbers."""

_LOOK_S = 0.5
"""Longest between two looks at what changes without a word: room in memory."""
_HURRY_S = 2.0
"""What is left to a call that is to end, for the chunk that is on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What bounds one subscription."""

    max_wait_s: float
    """Longest a batch waits for memory or for its mixer's queue, in seconds."""
    share_bytes: Callable[[], int]
    """Memory that the batches of one subscription may hold now, beside the one that is sent next."""


class Subscriber:
    """Reads on the thread that calls `read`, writes on the one that iterates over `write`."""

    def __init__(
        self,
        context: grpc.ServicerContext,
        *,
        feed: Feed,
        config: DatasetsConfig,
        limits: Limits,
        patience: Patience,
        metrics: DatasetMetrics,
        request: str,
    ) -> None:
        self.num_batches = 0
        """Batches that were sent."""
        self.num_images = 0
        """Images that were sent."""
        self._context = context
        self._feed = feed
        self._config = config
        self._limits = limits
        self._patience = patience
        self._metrics = metrics
        self._request = request
        self._sent_bytes = metrics.sent_bytes.labels(feed.dataset.name)
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._credits = 0
        self._is_half_closed = False
        self._failure: MixerError | None = None
        self._ahead: deque[Batch] = deque()  # of the writing thread, as all below
        self._next_number = feed.first
        self._refused_at_s: float | None = None

    def hear(self) -> None:
        """Look at the batches again; any thread may call it."""
        self._news.set()

    def grant(self, num_credits: int) -> None:
        """Allow the server to send so many more batches."""
        with self._lock:
            self._credits += num_credits
        self._news.set()

    def end(self, reason: MixerError) -> None:
        """End the call soon; the first reason counts."""
        with self._lock:
            self._failure = self._failure or reason
        self._news.set()
        # It may be stuck in the middle of a batch; cutting off a call that has ended does nothing.
        self._patience.expect((self, "end"), _HURRY_S, self._context.cancel)

    def read(self, messages: Iterator[bytes]) -> None:
        """Read credits until the client half-closes or is gone."""
        try:
            for data in messages:
                self.grant(_credits_of(data))
            self._is_half_closed = True
            self._news.set()
        except grpc.RpcError as error:  # how gRPC says that the call is over
            error.__traceback__ = None  # gRPC keeps the error, which would keep these frames
        except MixerError as error:
            self.end(error.with_traceback(None))
        except Exception:
            log.exception("subscription_failed", extra={"request": self._request})
            self.end(MixerBroken("the server failed on this subscription; its log has the reason"))

    def write(self, making: Making) -> Iterator[bytes]:
        """Yield the terms, then the batches; for gRPC, which sends them.

        Raises:
            MixerError: why the call ends before the epoch does.
        """
        yield from self._send(pb.SubscribeResponse(terms=self._feed.terms(self._config.lease_s)).SerializeToString())
        while self._next_number < self._feed.num_batches or self._ahead:
            batch = self._await_batch(making)
            yield from self._send_batch(batch)

    def close(self) -> None:
        """Let go of everything; for the writing thread."""
        for kind in ("send", "end"):
            self._patience.met((self, kind))
        while self._ahead:
            self._ahead.popleft().close()

    def _await_batch(self, making: Making) -> Batch:
        """Wait until the next batch is ready and there is a credit for it; it is the first of those ahead."""
        waiting_s = time.monotonic()
        ready_s: float | None = None
        while True:
            self._news.clear()
            self._check()
            pause_s = self._advance(making)
            if self._ahead and self._ahead[0].is_ready:
                ready_s = ready_s or time.monotonic()
                if self._take_credit():
                    self._observe_wait(waiting_s, ready_s)
                    return self._ahead[0]
            self._news.wait(min(pause_s, self._lease_left_s(waiting_s)))

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._context.is_active():
            raise MixerCancelled("the client is gone")

    def _advance(self, making: Making) -> float:
        """Begin the batches that may begin, hand to the mixer those it may have; says when to look again, in s."""
        self._begin(making)
        pauses_s = [batch.advance(self._limits.max_wait_s) for batch in self._ahead]
        return min([_LOOK_S, *(pause_s for pause_s in pauses_s if pause_s is not None)])

    def _begin(self, making: Making) -> None:
        while self._next_number < self._feed.num_batches and self._may_begin():
            try:
                self._ahead.append(Batch.begin(making, self._next_number))
            except MixerOverloaded as error:
                self._note_refusal(error)
                return
            self._next_number += 1
            self._refused_at_s = None

    def _may_begin(self) -> bool:
        if not self._ahead:
            return True
        held_bytes = len(self._ahead) * footprint_bytes(self._feed)
        return len(self._ahead) < self._config.read_ahead and held_bytes <= self._limits.share_bytes()

    def _note_refusal(self, error: MixerOverloaded) -> None:
        """Come again for memory, unless there is nothing else to send and it has taken too long."""
        now_s = time.monotonic()
        self._refused_at_s = self._refused_at_s or now_s
        if not self._ahead and now_s - self._refused_at_s > self._limits.max_wait_s:
            raise error

    def _take_credit(self) -> bool:
        with self._lock:
            has_credit = self._credits > 0
            self._credits -= has_credit
            return has_credit

    def _lease_left_s(self, since_s: float) -> float:
        """Say how long the consumer may go without a credit; it has all the time that it has one."""
        is_half_closed = self._is_half_closed  # looked at first: the last credit comes before
        if self._credits:
            return _LOOK_S
        if is_half_closed:
            raise MixerCancelled("the client has half-closed, and used its credits up; resume with your cursor")
        left_s = since_s + self._config.lease_s - time.monotonic()
        if left_s <= 0:
            raise MixerUnavailable(f"no credit came for {self._config.lease_s:g} s; resume with your cursor")
        return left_s

    def _observe_wait(self, waiting_s: float, ready_s: float) -> None:
        wait = self._metrics.wait
        wait.labels(self._feed.dataset.name, "batch").observe(ready_s - waiting_s)
        wait.labels(self._feed.dataset.name, "credit").observe(time.monotonic() - ready_s)

    def _send_batch(self, batch: Batch) -> Iterator[bytes]:
        ready = batch.encode()
        self._metrics.skipped.labels(self._feed.dataset.name).inc(ready.num_skipped)
        for data in batch_messages(ready.message, ready.pieces):
            yield from self._send(data)
        self._count(ready)
        self._ahead.popleft().close()

    def _send(self, data: bytes) -> Iterator[bytes]:
        self._patience.expect((self, "send"), self._config.lease_s, self._cut_off)
        yield data
        self._patience.met((self, "send"))
        self._sent_bytes.inc(len(data))

    def _count(self, ready: ReadyToSend) -> None:
        name, num_images = self._feed.dataset.name, ready.message.shape[0]
        self.num_batches += 1
        self.num_images += num_images
        self._metrics.batches.labels(name).inc()
        self._metrics.images.labels(name).inc(num_images)

    def _cut_off(self) -> None:
        # A status cannot overtake the data that is stuck: its client sees CANCELLED.
        fields = {"peer": self._context.peer(), "request": self._request, "lease_s": self._config.lease_s}
        log.warning("subscriber_not_reading", extra=fields)
        self._context.cancel()


def _credits_of(data: bytes) -> int:
    if len(data) > MAX_UP_BYTES:
        raise BadBatch(f"a message of credits may have {MAX_UP_BYTES} bytes, got {len(data)}; send numbers alone")
    message = parse(pb.SubscribeRequest, data).message
    if message.HasField("subscription"):
        raise BadBatch(
            "a second subscription came on one call; send credits, and subscribe on another call", field="subscription"
        )
    return message.credits
