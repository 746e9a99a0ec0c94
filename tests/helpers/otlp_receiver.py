"""A collector of OpenTelemetry that keeps the spans it is sent by OTLP over HTTP."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from serving import wait_until


@dataclass
class Collector:
    """What came."""

    port: int
    spans: list[Span] = field(default_factory=list)
    """All spans, in the order they came."""
    resources: list[dict[str, Any]] = field(default_factory=list)
    """What is said of the program, for each message."""
    paths: list[str] = field(default_factory=list)
    """Where messages went, for each."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, data: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(data)
        self.paths.append(path)
        for one in message.resource_spans:
            self.resources.append({item.key: item.value.string_value for item in one.resource.attributes})
            self.spans += [span for scope in one.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        wait_until(lambda: len(self.named(name)) >= count)
        return self.named(name)

    def below(self, span: Span) -> list[Span]:
        return [other for other in self.spans if other.parent_span_id == span.span_id]


def attributes_of(span: Span) -> dict[str, Any]:
    """Read a span's attributes."""
    values = {item.key: item.value for item in span.attributes}
    return {key: getattr(value, value.WhichOneof("value") or "string_value") for key, value in values.items()}


def is_error(span: Span) -> bool:
    """Say whether a span failed."""
    return span.status.code == Status.STATUS_CODE_ERROR


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
