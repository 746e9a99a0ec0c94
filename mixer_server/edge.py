"""The edge between gRPC and our methods: bytes in, bytes out, and every error answered with a status from one table.

gRPC hands the message over unparsed. So a garbled one is the caller's INVALID_ARGUMENT rather than gRPC's INTERNAL, its
true size is known, and ten megabytes are parsed on a thread of the pool, not on the one that serves all connections.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from mixer_server.metrics import UNKNOWN, MixerMetrics
from samix.errors import BadBatch, MixerBroken, MixerError
from samix.mixing.frozen import FrozenMixer
from samix.status import STATUS_OF, to_status

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(kw_only=True, slots=True)
class Call:
    """One call while it is answered."""

    context: grpc.ServicerContext
    """Deadline and cancellation."""
    model: str = UNKNOWN
    """Name of the hosted mixer it is about, for the metrics."""
    version: str = UNKNOWN
    """Version of that mixer."""

    def is_about(self, mixer: FrozenMixer) -> None:
        """Note which hosted mixer it is about; for the method, once it knows."""
        self.model, self.version = mixer.name, mixer.version


Method = Callable[[bytes, Call], bytes]
"""Answers a serialized request; raises MixerError."""


class Edge:
    """Wraps methods for gRPC: counts, times and translates errors."""

    def __init__(self, metrics: MixerMetrics) -> None:
        self._metrics = metrics
        self._idle = threading.Condition()
        self._in_flight = 0
        metrics.requests_in_flight.set_function(lambda: self._in_flight)

    def wrap(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        """Make what gRPC calls for the method of that name."""

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            with self._idle:
                self._in_flight += 1
            try:
                return self._answer(name, method, data, context)
            finally:
                with self._idle:
                    self._in_flight -= 1
                    self._idle.notify_all()

        return grpc.unary_unary_rpc_method_handler(answer)

    def join(self, timeout_s: float) -> bool:
        """Wait until no call is being answered; False if that takes longer than `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: self._in_flight == 0, timeout_s)

    def _answer(self, name: str, method: Method, data: bytes, context: grpc.ServicerContext) -> bytes:
        started_s = time.perf_counter()
        call = Call(context=context)
        code = grpc.StatusCode.INTERNAL
        self._metrics.received_bytes.labels(name).inc(len(data))
        try:
            reply = method(data, call)
            code = grpc.StatusCode.OK
        except MixerError as error:
            code = STATUS_OF[type(error)]
            _abort(context, error)
        except Exception:
            log.exception("call_failed", extra={"method": name})
            _abort(context, MixerBroken("the server failed on this request; its log has the reason"))
        finally:
            self._metrics.requests.labels(call.model, call.version, name, code.name).inc()
            self._metrics.request_duration.labels(name).observe(time.perf_counter() - started_s)
        self._metrics.sent_bytes.labels(name).inc(len(reply))
        return reply


def parse(message: type[MessageT], data: bytes) -> MessageT:
    """Read a message.

    Raises:
        BadBatch: if the bytes are no such message.
    """
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise BadBatch(f"the request is no {message.DESCRIPTOR.full_name}; regenerate the client's code") from error


def _abort(context: grpc.ServicerContext, error: MixerError) -> NoReturn:
    context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status always raises")
