"""Spans by OpenTelemetry, for a training loop that has a tracer provider already.

    from samix.adapters.opentelemetry import trace_with
    trace_with(provider)  # every mix of this process is a span from now on

Programs of ours do it with `--tracing.endpoint`.
"""

import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from samix import tracing
from samix.tracing import Attribute, SpanKind

_PROPAGATOR = TraceContextTextMapPropagator()
_MAX_ERROR = 1024  # characters of the sentence that a span keeps: peers write parts of some
_KINDS: dict[SpanKind, trace.SpanKind] = {"client": trace.SpanKind.CLIENT, "server": trace.SpanKind.SERVER}


def trace_with(provider: trace.TracerProvider | None = None) -> None:
    """Make spans of all mixes of this process, those of a mixer server in it as well.

    Args:
        provider: who keeps them; None takes OpenTelemetry's global one.
    """
    tracing.install(OpenTelemetryTracer(trace.get_tracer("samix", tracer_provider=provider)))


class OpenTelemetryTracer:
    """Fills `samix.tracing.Tracer`."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: dict[str, Attribute],
        *,
        parent: str = "",
        started_s: float | None = None,
    ) -> "OpenTelemetrySpan | None":
        """Start a span; None if it is not sampled."""
        above = _PROPAGATOR.extract({"traceparent": parent}, Context()) if parent else None
        origin_ns = time.time_ns() - time.perf_counter_ns()
        started_s = time.perf_counter() if started_s is None else started_s
        start_ns = origin_ns + round(started_s * 1e9)
        span = self._tracer.start_span(name, above, _KINDS[kind], attributes, start_time=start_ns)
        # One that is not sampled must still be told to peers, lest they decide anew.
        return OpenTelemetrySpan(self._tracer, span, origin_ns)


class OpenTelemetrySpan:
    """Fills `samix.tracing.Span`.

    Args:
        tracer: makes the spans of its stages.
        span: what it fills.
        origin_ns: where `time.perf_counter` was 0 on the clock that peers share. Read once, so that all times of a span
            keep their order.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span, origin_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._origin_ns = origin_ns
        self._lock = threading.Lock()
        self._has_ended = False

    @property
    def traceparent(self) -> str:
        """Name the span as W3C Trace Context does."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier.get("traceparent", "")

    def stage(self, name: str, started_s: float, ended_s: float) -> None:
        """Make a span below this one, from times of `time.perf_counter`."""
        if self._span.get_span_context().trace_flags.sampled:
            context = trace.set_span_in_context(self._span, Context())
            self._tracer.start_span(name, context, start_time=self._unix_ns(started_s)).end(self._unix_ns(ended_s))

    def event(self, name: str, **attributes: Attribute) -> None:
        """Note something that happened now."""
        self._span.add_event(name, attributes, self._unix_ns(time.perf_counter()))

    def end(self, error: str = "") -> None:
        """End it, once."""
        with self._lock:
            has_ended, self._has_ended = self._has_ended, True
        if has_ended:
            return
        if error:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, error[:_MAX_ERROR]))
        self._span.end(self._unix_ns(time.perf_counter()))

    def _unix_ns(self, time_s: float) -> int:
        return self._origin_ns + round(time_s * 1e9)
