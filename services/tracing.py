"""Spans of a program, sent to an OpenTelemetry collector by OTLP over HTTP; off until an endpoint is named.

Over HTTP rather than gRPC, because a training program forks its loader's workers while this is on, and no gRPC channel
outlives a fork (grpc/grpc#32992). Spans wait in a bounded queue for a thread of their own: where the collector is slow
or gone they are dropped, and nothing else is.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samix import tracing
from samix.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where OpenTelemetry itself looks for an endpoint."""

_CURE = "install the extra: pip install 'samix-service[tracing]'"
_MAX_QUEUE = 8192  # spans: a busy server makes 500 a second
_SEND_EVERY_MS = 2000
_SEND_TIMEOUT_S = 3.0
_LAST_WORDS_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TracingConfig:
    """Spans for OpenTelemetry."""

    endpoint: str = ""
    """Collector that takes OTLP over HTTP, such as http://localhost:4318; needs the extra `tracing`. Empty: what
    OTEL_EXPORTER_OTLP_ENDPOINT says, and without that none are made."""
    sample_ratio: float = 1.0
    """Share of the mixes that are traced, in [0, 1]. A server follows its clients' choice, and makes its own for those
    that trace nothing."""

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"tracing.endpoint must begin with http:// or https://, got {self.endpoint!r}; OTLP over HTTP is "
                "usually on port 4318"
            )
        if "@" in self.endpoint.removeprefix("https://").removeprefix("http://").partition("/")[0]:
            raise ConfigError(
                "tracing.endpoint must name no user and no password, which would be read in logs; "
                "OTEL_EXPORTER_OTLP_HEADERS takes what a collector asks for"
            )
        if not 0 <= self.sample_ratio <= 1:
            raise ConfigError(f"tracing.sample-ratio must lie in 0..1, got {self.sample_ratio}")


@contextmanager
def open_tracing(
    config: TracingConfig, service: str, environ: Mapping[str, str] = os.environ, **attributes: str | int
) -> Iterator[None]:
    """Make spans of the mixes of this process until the block ends; at its end, what is left is sent for 2 s.

    Args:
        config: where they go.
        service: name of the program, unless OTEL_SERVICE_NAME has another.
        environ: where OpenTelemetry's variables are looked up.
        attributes: of all its spans, such as the rank.

    Raises:
        ConfigError: if an endpoint is configured and OpenTelemetry is not installed.
    """
    if not _is_wanted(config, environ):
        yield
        return
    exporter = _LastingExporter(_make_exporter(config))
    provider = _make_provider(
        config, exporter, {"service.name": environ.get("OTEL_SERVICE_NAME") or service, **attributes}
    )
    from samix.adapters.opentelemetry import trace_with

    trace_with(provider)
    log.info("tracing", extra={"endpoint": config.endpoint or "OTEL_EXPORTER_OTLP_ENDPOINT"})
    try:
        yield
    finally:
        tracing.install(None)
        _shut_down(provider, exporter)


def _is_wanted(config: TracingConfig, environ: Mapping[str, str]) -> bool:
    variables = [name for name in ENDPOINT_VARIABLES if environ.get(name)]
    if (not config.endpoint and not variables) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        if config.endpoint:
            raise ConfigError(f"tracing.endpoint is set, but {error.name} is not installed; {_CURE}") from error
        # Whole clusters set the variable; a program that cannot trace is not wrong there.
        log.warning("tracing_off", extra={"variable": variables[0], "missing": error.name, "cure": _CURE})
        return False
    return True


def _make_exporter(config: TracingConfig) -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = f"{config.endpoint.rstrip('/')}/v1/traces" if config.endpoint else None
    return OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_TIMEOUT_S)


def _make_provider(config: TracingConfig, exporter: "_LastingExporter", attributes: dict[str, Any]) -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    # It would say so of each span that the full queue drops, on the thread that made it. Why it is full, the exporter
    # says.
    logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(config.sample_ratio),
        resource=Resource.create(attributes),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,  # pyright: ignore[reportArgumentType] - an exporter in all but its base class
            max_queue_size=_MAX_QUEUE,
            schedule_delay_millis=_SEND_EVERY_MS,
        )
    )
    return provider


class _LastingExporter:
    """Exports until it is told to end, and then no more: OpenTelemetry would try for half a minute."""

    def __init__(self, exporter: "SpanExporter") -> None:
        self._exporter = exporter
        self._ending = threading.Lock()  # taken once and kept

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        """Send spans."""
        if self._ending.locked():
            from opentelemetry.sdk.trace.export import SpanExportResult

            return SpanExportResult.FAILURE
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Send nothing more, and give up what is being sent again."""
        if self._ending.acquire(blocking=False):
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Hold nothing back."""
        return self._exporter.force_flush(timeout_millis)


def _shut_down(provider: "TracerProvider", exporter: _LastingExporter) -> None:
    limit = threading.Timer(_LAST_WORDS_S, exporter.shutdown)
    limit.daemon = True
    limit.start()
    try:
        provider.shutdown()
    finally:
        limit.cancel()
        limit.join()
