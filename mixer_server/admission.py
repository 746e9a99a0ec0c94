"""Who may hold a thread: all unary calls pass here, health checks included, before their message is waited for.

gRPC gives a call a thread of the pool when its headers come, and the thread then waits for the message: callers that
send none would hold the whole pool for ever. So unary methods are given to gRPC as streaming ones, which is the same on
the wire, and their one message is read here, by a bounded number of threads and for a bounded time.
"""

import contextlib
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from mixer_server.metrics import UNKNOWN, MixerMetrics
from samix.errors import BadBatch, MixerCancelled, MixerError, MixerOverloaded
from samix.status import STATUS_OF, to_status

log = logging.getLogger(__name__)

_CHECKS = 8  # of the uploads, in the time that one may take


class Admission(grpc.ServerInterceptor):
    """Bounds the calls of each method, and how long they may take to send their message."""

    def __init__(
        self, *, max_calls: int, max_upload_s: float, retry_after_s: Callable[[], float], metrics: MixerMetrics
    ) -> None:
        self._max_calls = max_calls
        self._max_upload_s = max_upload_s
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._uploads: dict[grpc.ServicerContext, float] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="uploads", daemon=True)

    def start(self) -> None:
        """Watch the uploads from now on."""
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed.set()
        self._thread.join()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Guard the handler of a unary request; others are no business of ours. For gRPC, at every call."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        if handler.response_streaming:
            answer = self._guard(method, handler.unary_stream, handler.request_deserializer)
            return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)
        answer = self._guard(method, handler.unary_unary, handler.request_deserializer)
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _guard(self, method: str, behaviour: Callable, deserialize: Callable[[bytes], Any] | None) -> Callable:
        @functools.wraps(behaviour)  # copies attributes too: one tells gRPC that health's Watch holds no thread
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext, *send: Callable) -> Any:
            with self._slot(method, context):
                data = self._receive(method, messages, context)
                try:
                    request = deserialize(data) if deserialize else data
                except DecodeError:
                    self._refuse(method, context, BadBatch(f"this is no request of {method}"))
                return behaviour(request, context, *send)

        return answer

    @contextlib.contextmanager
    def _slot(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        with self._lock:
            is_free = self._calls[method] < self._max_calls
            self._calls[method] += is_free
        if not is_free:
            sentence = f"{self._max_calls} calls of {method} are in flight, no more are taken"
            self._refuse(method, context, MixerOverloaded(sentence, self._retry_after_s()))
        try:
            yield
        finally:
            with self._lock:
                self._calls[method] -= 1

    def _receive(self, method: str, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self._uploads[context] = time.monotonic() + self._max_upload_s
        message = next(_until_the_end(messages), None)
        with self._lock:
            is_late = self._uploads.pop(context, None) is None
        if message is None:
            if is_late or not context.is_active():
                self._refuse(method, context, MixerCancelled(f"the call of {method} ended before its message came"))
            self._refuse(method, context, BadBatch(f"{method} needs exactly one message, got none"))
        return message

    def _refuse(self, method: str, context: grpc.ServicerContext, error: MixerError) -> NoReturn:
        self._metrics.requests.labels(UNKNOWN, UNKNOWN, method, STATUS_OF[type(error)].name).inc()
        context.abort_with_status(to_status(error))
        raise AssertionError("abort_with_status always raises")

    def _watch(self) -> None:
        while not self._is_closed.wait(self._max_upload_s / _CHECKS):
            now_s = time.monotonic()
            with self._lock:
                late = [context for context, deadline_s in self._uploads.items() if deadline_s <= now_s]
                for context in late:
                    del self._uploads[context]
            for context in late:
                log.warning("upload_too_slow", extra={"peer": context.peer(), "limit_s": self._max_upload_s})
                context.cancel()


def _until_the_end(messages: Iterator[bytes]) -> Iterator[bytes]:
    """Yield messages until the call ends, in whatever way: gRPC may say that it was cancelled, or just stop."""
    with contextlib.suppress(grpc.RpcError):
        yield from messages
