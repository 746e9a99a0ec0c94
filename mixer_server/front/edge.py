"""The edge between gRPC and our methods: bytes in, bytes out, and every error answered with a status from one table.

gRPC hands the message over unparsed. So a garbled one is the caller's INVALID_ARGUMENT rather than gRPC's INTERNAL, its
true size is known, and ten megabytes are parsed on a thread of the pool, not on the one that serves all connections.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from mixer_server.front.in_flight import InFlight
from mixer_server.front.intake import Caller
from mixer_server.metrics import UNKNOWN, MixerMetrics
from mixer_server.scheduling.budget import Reservation
from samix.errors import BadBatch, MixerBroken, MixerError
from samix.framing import Framed, HeadTooLarge, split
from samix.mixing.frozen import FrozenMixer
from samix.request_keys import KEY_METADATA, TRACE_METADATA, RequestKeys, tidy_key
from samix.status import STATUS_OF, to_status
from samix.tracing import Span
from samix.wire import CLIENT_KEY
from services.log_context import about_request, current_request

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 1 << 18
"""Most bytes of a request besides its bulk bytes: enough for what is said of 15,000 images. Parsed, numbers take up to
thirteen times the bytes they have on the wire."""
_MAX_CLIENT = 64
REQUEST_KEYS = RequestKeys()
"""Names those requests that their clients did not."""

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
    key: str = ""
    """What logs and traces call it."""
    span: Span | None = None
    """Where somebody traces it; for the method, which ends it by leaving."""
    began_s: float = field(default_factory=time.perf_counter)
    """When it began, on the clock of `time.perf_counter`."""

    def is_about(self, mixer: FrozenMixer) -> None:
        """Note which hosted mixer it is about; for the method, once it knows."""
        self.model, self.version = mixer.name, mixer.version


Method = Callable[[bytes, Call], bytes]
"""Answers a serialized request; raises MixerError."""


class Edge:
    """Wraps methods for gRPC: counts, times and translates errors."""

    def __init__(self, metrics: MixerMetrics, in_flight: InFlight) -> None:
        self._metrics = metrics
        self._in_flight = in_flight

    def wrap(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        """Make what gRPC calls for the method of that name."""

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            with self._in_flight.counted(), about_request(current_request() or key_of(context)):
                return self._answer(name, method, data, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _answer(self, name: str, method: Method, data: bytes, context: grpc.ServicerContext) -> bytes:
        call = Call(context=context, key=current_request())
        code = grpc.StatusCode.INTERNAL
        failure = "the server failed on this request"
        self._metrics.received_bytes.labels(name).inc(len(data))
        try:
            reply = method(data, call)
            code, failure = grpc.StatusCode.OK, ""
        except MixerError as error:
            code, failure = STATUS_OF[type(error)], str(error)
            self._metrics.problems.note(name, code.name, str(error))
            _abort(context, error)
        except Exception:
            log.exception("call_failed", extra={"method": name, "client": caller_of(context).client})
            _abort(context, MixerBroken("the server failed on this request; its log has the reason"))
        finally:
            self._metrics.requests.labels(call.model, call.version, name, code.name).inc()
            self._metrics.request_duration.labels(name).observe(time.perf_counter() - call.began_s)
            if call.span is not None:
                call.span.end(failure)
        self._metrics.sent_bytes.labels(name).inc(len(reply))
        return reply


def parse(message: type[MessageT], data: bytes) -> Framed[MessageT]:
    """Read a message; its bulk bytes are a view of `data`.

    Raises:
        BadBatch: if the bytes are no such message, or more of it than its bulk bytes is large.
    """
    try:
        return split(message, data, MAX_HEAD_BYTES)
    except HeadTooLarge as error:
        raise BadBatch(
            f"of {len(data)} bytes, more than {MAX_HEAD_BYTES} are not pixels where pixels belong; send fewer images, "
            "and nothing else"
        ) from error
    except DecodeError as error:
        raise BadBatch(f"the request is no {message.DESCRIPTOR.full_name}; regenerate the client's code") from error


@contextmanager
def until_sent(reservation: Reservation, context: grpc.ServicerContext) -> Iterator[Reservation]:
    """Hold memory during the block, and then until the call is over: gRPC keeps an answer until its peer reads it."""
    try:
        yield reservation
    finally:
        if not context.add_callback(reservation.release):  # it is over
            reservation.release()


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Say whose call it is: as the client names itself in its metadata, else its address without the port."""
    peer = context.peer()
    names = [str(value) for key, value in context.invocation_metadata() if key == CLIENT_KEY]
    client = names[0] if names else peer.rpartition(":")[0]
    return Caller(client=client[:_MAX_CLIENT], peer=peer)


def key_of(context: grpc.ServicerContext) -> str:
    """Say what a call is called in logs and traces: as its client says in its metadata, else a new name."""
    return tidy_key(_metadata(context, KEY_METADATA)) or REQUEST_KEYS.next()


def parent_of(context: grpc.ServicerContext) -> str:
    """Say which span of its client a call belongs to, as W3C Trace Context does; empty where it says none."""
    return _metadata(context, TRACE_METADATA)


def _metadata(context: grpc.ServicerContext, wanted: str) -> str:
    return next((str(value) for name, value in context.invocation_metadata() if name == wanted), "")


def host_of(context: grpc.ServicerContext) -> str:
    """Say from where a call comes: the address without its port, or `unix`."""
    return context.peer().rpartition(":")[0]


def refuse(metrics: MixerMetrics, method: str, context: grpc.ServicerContext, error: MixerError) -> NoReturn:
    """Count and refuse a call of which no more is known than its method."""
    code = STATUS_OF[type(error)].name
    metrics.requests.labels(UNKNOWN, UNKNOWN, method, code).inc()
    metrics.problems.note(method, code, str(error))
    _abort(context, error)


def _abort(context: grpc.ServicerContext, error: MixerError) -> NoReturn:
    context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status always raises")
