"""Who may hold a thread: all calls pass here, health checks included, before a message of theirs is waited for.

gRPC gives a call a thread of the pool when its headers come, and the thread then waits for the message: callers that
send none would hold the whole pool for ever. So unary methods are given to gRPC as streaming ones, which is the same on
the wire, and their one message is read here, by a bounded number of threads and for a bounded time.
"""

import contextlib
import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mixer_server.front.edge import key_of, refuse, until_sent
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.budget import MemoryBudget, Reservation
from samix.errors import BadBatch, MixerCancelled, MixerError, MixerOverloaded
from services.log_context import about_request, current_request

log = logging.getLogger(__name__)

_LARGE = frozenset({"Mix", "ModelInfer"})
"""Methods whose messages are counted in the memory budget from their first byte; those of others are small."""
_SELF_GUARDED = frozenset({"MixStream", "Subscribe", "CoTrain", "SendWeights"})
"""Methods that bound their calls, and what these may do, themselves."""
_MAX_SMALL_BYTES = 1 << 16
"""Longest message of a method that is not large: names, of a mixer, a service or a file."""


class Admission(grpc.ServerInterceptor):
    """Bounds the calls of each method, and how long they may take to send their message."""

    def __init__(
        self,
        config: RequestConfig,
        *,
        budget: MemoryBudget,
        patience: Patience,
        retry_after_s: Callable[[], float],
        metrics: MixerMetrics,
    ) -> None:
        self._config = config
        self._budget = budget
        self._patience = patience
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Guard the handler of a method. For gRPC, at every call."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        if handler is None or method in _SELF_GUARDED:
            return handler
        if handler.request_streaming:
            answer = self._guard_stream(method, handler.stream_stream, handler.request_deserializer)
            return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)
        if handler.response_streaming:
            answer = self._guard(method, handler.unary_stream, handler.request_deserializer)
            return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)
        answer = self._guard(method, handler.unary_unary, handler.request_deserializer)
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _guard(self, method: str, behaviour: Callable, deserialize: Callable[[bytes], Any] | None) -> Callable:
        @functools.wraps(behaviour)  # copies attributes too: one tells gRPC that health's Watch holds no thread
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext, *send: Callable) -> Any:
            named = about_request(key_of(context))
            with named, self._slot(method, context), self._room(method, context) as room:
                data = self._receive(method, messages, context)
                if method in _LARGE:
                    room.resize(len(data))
                response = behaviour(self._parse(method, data, deserialize, context), context, *send)
                if method in _LARGE:
                    self._hurry_reader(context)
                return response

        return answer

    def _guard_stream(self, method: str, behaviour: Callable, deserialize: Callable[[bytes], Any] | None) -> Callable:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._slot(method, context):
                requests = (self._parse(method, data, deserialize, context) for data in self._prompt(messages, context))
                for response in behaviour(requests, context):
                    with self._hurried(context):  # whoever does not read holds the thread as well
                        yield response

        return answer

    def _prompt(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        messages = _until_the_end(messages)
        while True:
            with self._hurried(context):
                message = next(messages, None)
            if message is None:
                return
            yield message

    @contextlib.contextmanager
    def _hurried(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Cut the call off if the block takes too long."""
        self._patience.expect(context, self._config.max_upload_s, partial(self._cut_off, context, current_request()))
        try:
            yield
        finally:
            self._patience.met(context)

    def _hurry_reader(self, context: grpc.ServicerContext) -> None:
        """Cut the call off if its answer is not taken: gRPC would keep it for ever."""
        key = (context, "answer")

        def end() -> None:
            self._patience.met(key)

        if context.add_callback(end):
            cut_off = partial(self._cut_off, context, current_request(), "answer_not_taken")
            self._patience.expect(key, self._config.max_upload_s, cut_off)
            if not context.is_active():  # it ended before that was expected
                end()

    def _parse(
        self, method: str, data: bytes, deserialize: Callable[[bytes], Any] | None, context: grpc.ServicerContext
    ) -> Any:
        if method not in _LARGE and len(data) > _MAX_SMALL_BYTES:
            sentence = f"a request of {method} may have {_MAX_SMALL_BYTES} bytes, got {len(data)}; send a shorter name"
            refuse(self._metrics, method, context, BadBatch(sentence))
        try:
            return deserialize(data) if deserialize else data
        except DecodeError:
            refuse(
                self._metrics,
                method,
                context,
                BadBatch(f"this is no request of {method}; regenerate the client's code"),
            )

    @contextlib.contextmanager
    def _slot(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        with self._lock:
            is_free = self._calls[method] < self._config.max_in_flight
            self._calls[method] += is_free
        if not is_free:
            sentence = f"{self._config.max_in_flight} calls of {method} are in flight, no more are taken"
            refuse(self._metrics, method, context, MixerOverloaded(sentence, self._retry_after_s()))
        try:
            yield
        finally:
            with self._lock:
                self._calls[method] -= 1

    @contextlib.contextmanager
    def _room(self, method: str, context: grpc.ServicerContext) -> Iterator[Reservation]:
        """Hold memory for the largest message that may come: gRPC does not say how large it is before it is there."""
        num_bytes = self._config.max_message_mib << 20 if method in _LARGE else 0
        try:
            room = self._budget.reserve(num_bytes)
        except MixerError as error:
            refuse(self._metrics, method, context, error)
        with until_sent(room, context):
            yield room

    def _receive(self, method: str, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self._patience.expect(context, self._config.max_upload_s, partial(self._cut_off, context, current_request()))
        message = next(_until_the_end(messages), None)
        is_late = not self._patience.met(context)
        if message is None:
            if is_late or not context.is_active():
                refuse(
                    self._metrics,
                    method,
                    context,
                    MixerCancelled(f"the call of {method} ended before its message came"),
                )
            refuse(self._metrics, method, context, BadBatch(f"{method} needs exactly one message, got none"))
        return message

    def _cut_off(self, context: grpc.ServicerContext, request: str, event: str = "upload_too_slow") -> None:
        fields = {"peer": context.peer(), "limit_s": self._config.max_upload_s}
        log.warning(event, extra=fields | ({"request": request} if request else {}))
        context.cancel()


def _until_the_end(messages: Iterator[bytes]) -> Iterator[bytes]:
    """Yield messages until the call ends, in whatever way: gRPC may say that it was cancelled, or just stop."""
    try:
        yield from messages
    except grpc.RpcError as error:
        error.__traceback__ = None  # gRPC keeps the error, which would keep these frames, and they the call
