"""Subscribe: all calls of a server, bounded, each with a consumer of its own."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import grpc

from mixer_server.datasets.batch import Making, footprint_bytes
from mixer_server.datasets.checking import Checker
from mixer_server.datasets.claims import Claims
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.feed import Feed
from mixer_server.datasets.messages import CHUNK_BYTES
from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.datasets.subscriber import MAX_UP_BYTES, METHOD, Limits, Subscriber
from mixer_server.front.edge import caller_of, key_of, parse
from mixer_server.front.intake import Intake
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.metrics import UNKNOWN, MixerMetrics
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from mixer_server.scheduling.budget import MemoryBudget
from samix.errors import BadBatch, MixerBroken, MixerCancelled, MixerError, MixerOverloaded, MixerUnavailable
from samix.mixer.v1 import dataset_pb2 as pb
from samix.status import STATUS_OF, to_status

log = logging.getLogger(__name__)

_CALL_BYTES = 2 * CHUNK_BYTES
"""Memory of an open call beside its batches: a chunk that is sent, and the one that is made."""
_ORDER_BYTES = 4
"""Of each sample of the epoch, in its order."""
_SHARE = 2
"""One over the part of the requests' memory that batches of datasets may hold."""
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SubscriptionServices:
    """What subscriptions need of the server."""

    checker: Checker
    intake: Intake
    budget: MemoryBudget
    patience: Patience
    metrics: MixerMetrics
    dataset_metrics: DatasetMetrics


class Subscriptions:
    """Answers Subscribe, on no more calls at once than are allowed. `drain`, then `close` once the calls have ended."""

    def __init__(self, config: DatasetsConfig, requests: RequestConfig, services: SubscriptionServices) -> None:
        self._config = config
        self._requests = requests
        self._services = services
        self._share = MemoryBudget(services.budget.max_bytes // _SHARE, lambda: _RETRY_AFTER_S)
        self._claims = Claims()
        self._lock = threading.Lock()
        self._num_calls = 0
        self._subscribers: set[Subscriber] = set()
        self._is_draining = False
        self._readers = ThreadPoolExecutor(config.max_subscriptions, "credit-reader")

    def handler(self) -> grpc.RpcMethodHandler:
        """Make what gRPC calls for the method."""
        return grpc.stream_stream_rpc_method_handler(self._answer)

    def drain(self) -> None:
        """End all subscriptions; their clients come back with their cursors, elsewhere perhaps."""
        with self._lock:
            self._is_draining = True
            subscribers = list(self._subscribers)
        for subscriber in subscribers:
            subscriber.end(MixerUnavailable(SHUTTING_DOWN))

    def close(self) -> None:
        """Wait for the readers; the calls must have ended before."""
        self._readers.shutdown()

    def _answer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        mixer, code = (UNKNOWN, UNKNOWN), grpc.StatusCode.CANCELLED  # unless it ends otherwise
        key = key_of(context)
        try:
            with self._call():
                first = self._receive(messages, context)
                feed = self._services.checker.check(first.subscription)
                mixer = (feed.mixer.name, feed.mixer.version) if feed.mixer else mixer
                yield from self._serve(feed, first.credits, messages, context, key)
            code = grpc.StatusCode.OK
        except MixerError as error:
            code = STATUS_OF[type(error)]
            self._services.metrics.problems.note(METHOD, code.name, str(error))
            context.abort_with_status(to_status(error.with_traceback(None)))
        except Exception:
            log.exception("subscription_failed", extra={"request": key})
            code = grpc.StatusCode.INTERNAL
            error = MixerBroken("the server failed on this subscription; its log has the reason")
            context.abort_with_status(to_status(error))
        finally:
            self._services.metrics.requests.labels(*mixer, METHOD, code.name).inc()

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._lock:
            is_free = self._num_calls < self._config.max_subscriptions
            self._num_calls += is_free
        if not is_free:
            raise MixerOverloaded(
                f"{self._config.max_subscriptions} subscriptions are open, no more are taken", _RETRY_AFTER_S
            )
        try:
            yield
        finally:
            with self._lock:
                self._num_calls -= 1

    def _receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> pb.SubscribeRequest:
        """Wait for the first message."""
        patience, data = self._services.patience, None
        patience.expect(context, self._requests.max_upload_s, context.cancel)
        try:
            data = next(messages, None)
        except grpc.RpcError as error:  # how gRPC says that the call is over
            error.__traceback__ = None  # gRPC keeps the error, which would keep these frames
        patience.met(context)
        if data is None:
            if not context.is_active():
                raise MixerCancelled("the call ended before its subscription came")
            raise BadBatch("the first message must hold the subscription, got none", field="subscription")
        if len(data) > MAX_UP_BYTES:
            raise BadBatch(f"a subscription may have {MAX_UP_BYTES} bytes, got {len(data)}; take shorter names")
        message = parse(pb.SubscribeRequest, data).message
        if not message.HasField("subscription"):
            raise BadBatch("the first message must hold the subscription, got credits alone", field="subscription")
        return message

    def _serve(
        self, feed: Feed, num_credits: int, messages: Iterator[bytes], context: grpc.ServicerContext, key: str
    ) -> Iterator[bytes]:
        services, wanted = self._services, feed.subscription
        limits = Limits(max_wait_s=self._requests.max_wait_s, share_bytes=self._share_bytes)
        subscriber = Subscriber(
            context,
            feed=feed,
            config=self._config,
            limits=limits,
            patience=services.patience,
            metrics=services.dataset_metrics,
            request=key,
        )
        self._check_memory(feed)
        with ExitStack() as held:
            held.enter_context(services.budget.reserve(_CALL_BYTES + _ORDER_BYTES * feed.deal.num_samples))
            held.enter_context(self._claims.hold(feed.claim, wanted.consumer, wanted.token, subscriber.end))
            epoch = held.enter_context(feed.dataset.epochs.use(wanted.seed, wanted.epoch))
            maker = held.enter_context(feed.dataset.maker(wanted.image_size, is_centred=feed.is_centred))
            held.enter_context(self._open(subscriber))
            held.callback(subscriber.close)
            client = caller_of(context).client
            held.enter_context(self._told(feed, subscriber, client, key))
            subscriber.grant(num_credits)
            if not context.add_callback(subscriber.hear):
                raise MixerCancelled("the call ended before it was served")
            self._readers.submit(subscriber.read, messages)
            epoch.start_from(feed.deal.rows(wanted.consumer, feed.first).start)
            making = Making(
                feed=feed,
                epoch=epoch,
                maker=maker,
                intake=services.intake,
                budget=services.budget,
                share=self._share,
                client=client,
                request=key,
                on_news=subscriber.hear,
            )
            yield from subscriber.write(making)

    def _check_memory(self, feed: Feed) -> None:
        footprint, most = footprint_bytes(feed), self._share.max_bytes
        if footprint > most:
            raise BadBatch(
                f"a batch of {feed.subscription.batch_size} images needs {footprint >> 20} MiB, and batches of "
                f"datasets may have {most >> 20} here; take smaller batches",
                field="batch_size",
            )

    def _share_bytes(self) -> int:
        return self._share.max_bytes // max(1, len(self._subscribers))

    @contextmanager
    def _open(self, subscriber: Subscriber) -> Iterator[None]:
        with self._lock:
            self._subscribers.add(subscriber)
            is_draining = self._is_draining
        if is_draining:
            subscriber.end(MixerUnavailable(SHUTTING_DOWN))
        try:
            yield
        finally:
            with self._lock:
                self._subscribers.discard(subscriber)

    @contextmanager
    def _told(self, feed: Feed, subscriber: Subscriber, client: str, key: str) -> Iterator[None]:
        """Log and count the block as an open subscription."""
        wanted, started_s = feed.subscription, time.monotonic()
        fields = {
            "dataset": wanted.dataset,
            "mixer": wanted.mixer,
            "epoch": wanted.epoch,
            "consumer": wanted.consumer,
            "num_consumers": wanted.num_consumers,
            "client": client,
            "request": key,
        }
        gauge = self._services.dataset_metrics.subscriptions_open.labels(wanted.dataset)
        gauge.inc()
        log.info("subscription_started", extra=fields | {"first": feed.first, "of": feed.num_batches})
        reason = "gone"
        try:
            yield
            reason = "done"
        except MixerError as error:
            reason = str(error)
            raise
        finally:
            gauge.dec()
            seconds = round(time.monotonic() - started_s, 3)
            counts = {"batches": subscriber.num_batches, "images": subscriber.num_images, "seconds": seconds}
            log.info("subscription_ended", extra=fields | counts | {"reason": reason})
