"""A few read-only pages over HTTP, for people, probes and Prometheus.

The standard library's server, bounded: a fixed number of connections at once, each for a fixed time, GET and HEAD only.
"""

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from services.addresses import check_port, format_address, refuse_address

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 32
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
    headers: Mapping[str, str] = field(default_factory=dict)
    """More headers, or others in place of those that every page has."""
    data: bytes | None = None
    """What to send where it is no text; in place of the body."""


_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every page: nothing keeps it, frames it, guesses what it is, or loads anything for it."""

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


def serve_pages(routes: Routes, host: str, port: int, *, max_connection_s: float = 10.0) -> PageServer:
    """Serve pages from threads of their own.

    Args:
        routes: the pages.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        max_connection_s: how long a caller may take to ask and to read the answer; then it is cut off.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    check_port(port)
    try:
        server = _Server(routes, host, port, max_connection_s)
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

    def __init__(self, routes: Routes, host: str, port: int, max_connection_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.routes = routes
        self._max_connection_s = max_connection_s
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}  # of the open connections, first come first
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own also asks the DNS for this machine's name, for nothing
        self.server_name, self.server_port = self.server_address[:2]  # pyright: ignore[reportAttributeAccessIssue]

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._deadlines) >= _MAX_CONNECTIONS:
            super().shutdown_request(request)
            return
        with self._lock:
            self._deadlines[request] = time.monotonic() + self._max_connection_s
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:  # before its descriptor is closed, after which another connection may have it
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        # A timeout of the socket would bound each read, and a caller that sends a byte now and then make many of them.
        now_s = time.monotonic()
        with self._lock:
            for request, deadline_s in self._deadlines.items():
                if deadline_s <= now_s:
                    _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        if isinstance(sys.exception(), ConnectionError):  # the caller hung up, or was cut off
            return
        log.warning("http_request_failed", extra={"peer": client_address}, exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the caller has hung up itself
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def version_string(self) -> str:
        return "samix"

    def do_GET(self) -> None:
        page = self._page()
        body = page.body.encode() if page.data is None else page.data
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (_HEADERS | dict(page.headers)).items():
            self.send_header(name, value)
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
