"""A few read-only pages over HTTP, for people, probes and Prometheus.

The standard library's server, bounded: few connections at once, each for a fixed time, short questions, GET and HEAD
only. A `Door` says who may ask, and makes it speak TLS.
"""

import http.client
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from socketserver import TCPServer
from typing import Any

from services.addresses import check_port, format_address, refuse_address
from services.http_connections import MAX_CONNECTIONS, Connections
from services.security.door import Door, Refused

log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.1
_MAX_SILENCE_S = 5.0
_MAX_HEAD_BYTES = 16 << 10
_TLS_RECORD = b"\x16"  # that a handshake begins with
_SPEAK_TLS = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks TLS; ask https://\n"


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


_OPEN_DOOR = Door()


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


def serve_pages(
    routes: Routes, host: str, port: int, *, max_connection_s: float = 10.0, door: Door = _OPEN_DOOR
) -> PageServer:
    """Serve pages from threads of their own.

    Args:
        routes: the pages.
        host: address to listen on; also a name that callers may ask for.
        port: port to listen on; 0 takes a free one.
        max_connection_s: how long a caller may take to ask and to read the answer; then it is cut off.
        door: who may see which page.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    check_port(port)
    try:
        server = _Server(routes, host, port, max_connection_s, door)
    except OSError as error:
        raise refuse_address(host, port, error) from error
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_INTERVAL_S,), name=f"http-{port}", daemon=True)
    thread.start()
    log.debug("http_listening", extra={"address": format_address(host, server.server_address[1])})
    return PageServer(server, thread)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * MAX_CONNECTIONS  # of connections that wait; with the default of 5 bursts lose seconds

    def __init__(self, routes: Routes, host: str, port: int, max_connection_s: float, door: Door) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.routes = routes
        self.door = replace(door, hosts=door.hosts | {host.lower()})
        self.connections = Connections(max_connection_s, _MAX_SILENCE_S)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own also asks the DNS for this machine's name, for nothing
        self.server_name, self.server_port = self.server_address[:2]  # pyright: ignore[reportAttributeAccessIssue]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.door.tls is None:
            return connection, address
        try:  # the handshake itself is for the connection's thread: it may take as long as the caller likes
            tls = self.door.tls()
            return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except BaseException:
            connection.close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.admit(request, client_address[0]):
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            # Read from below the TLS, as are the next two.
            first = socket.socket.recv(request, 1, socket.MSG_PEEK)
            if first != _TLS_RECORD:
                socket.socket.sendall(request, _SPEAK_TLS if first else b"")
                return
            request.do_handshake()
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.forget(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.connections.cut_late()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        error = sys.exception()
        if isinstance(error, ssl.SSLError):
            log.info("tls_handshake_failed", extra={"peer": client_address[0], "reason": error.reason or str(error)})
        elif not isinstance(error, ConnectionError):  # else the caller hung up, or was cut off
            log.warning("http_request_failed", extra={"peer": client_address}, exc_info=True)


class _HeadTooLong(http.client.HTTPException):
    """A question that goes on and on."""


class _Head:
    """Reads the lines of a question, of a bounded length altogether."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._num_left = _MAX_HEAD_BYTES

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(min(limit, self._num_left + 1))
        self._num_left -= len(line)
        if self._num_left < 0:
            raise _HeadTooLong(f"more than {_MAX_HEAD_BYTES} bytes")
        return line

    def close(self) -> None:
        self._file.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def version_string(self) -> str:
        return "samix"

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.rfile)  # pyright: ignore[reportAttributeAccessIssue] - all that is used of it

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _HeadTooLong:  # in the first line; in a later one the base class says the same
            self.requestline, self.request_version, self.command = "", "", ""
            self.send_error(414)

    def do_GET(self) -> None:
        self.server.connections.note_question(self.connection)
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
        refused = self.server.door.judge(path, self.headers, has_certificate=_has_certificate(self.connection))
        if refused is not None:
            log.info("page_denied", extra={"peer": self.client_address[0], "status": int(refused.status)})
            return _refusal(refused)
        make = self.server.routes.get(path)
        if make is None:
            return Page(f"no page {path!r} here; there are {', '.join(self.server.routes)}\n", status=404)
        return make()


def _has_certificate(connection: socket.socket) -> bool:
    return isinstance(connection, ssl.SSLSocket) and bool(connection.getpeercert())


def _refusal(refused: Refused) -> Page:
    return Page(f"{refused.sentence}\n", status=refused.status, headers=refused.headers)
