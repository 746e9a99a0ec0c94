"""A few read-only pages over HTTP, for people, probes and Prometheus.

The standard library's server, bounded: a fixed number of connections at once, each with a timeout, GET and HEAD only.
"""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from services.addresses import format_address, refuse_address

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 32
_IDLE_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    body: str
    """Text of the page."""
    status: int = 200
    """HTTP status code."""
    content_type: str = "text/plain; charset=utf-8"
    """Media type of the body."""


Routes = Mapping[str, Callable[[], Page]]
"""A page for each path. Pages are made on several threads at once."""


class PageServer:
    """Serves pages until it is closed. Use `serve_pages` to open one."""

    def __init__(self, server: "_Server", thread: threading.Thread) -> None:
        self.port: int = server.server_address[1]
        """Port it listens on."""
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Stop listening; pages that are being written may be cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_pages(routes: Routes, host: str, port: int) -> PageServer:
    """Serve pages from threads of their own; port 0 takes a free one.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    try:
        server = _Server(routes, host, port)
    except OSError as error:
        raise refuse_address(host, port, error) from error
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_INTERVAL_S,), name=f"http-{port}", daemon=True)
    thread.start()
    log.debug("http_listening", extra={"address": format_address(host, server.server_address[1])})
    return PageServer(server, thread)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _MAX_CONNECTIONS  # of connections that wait; with the default of 5 bursts lose seconds

    def __init__(self, routes: Routes, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.routes = routes
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own also asks the DNS for this machine's name, for nothing
        self.server_name, self.server_port = self.server_address[:2]  # pyright: ignore[reportAttributeAccessIssue]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        log.warning("http_request_failed", extra={"peer": client_address}, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _IDLE_TIMEOUT_S

    def version_string(self) -> str:
        return "samix"

    def do_GET(self) -> None:
        page = self._page()
        body = page.body.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's name for it

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        log.debug("http_request", extra={"peer": self.client_address[0], "line": format % args})

    def _page(self) -> Page:
        path = self.path.partition("?")[0]
        make = self.server.routes.get(path)
        if make is None:
            return Page(f"no page {path!r} here; there are {', '.join(self.server.routes)}\n", status=404)
        return make()
