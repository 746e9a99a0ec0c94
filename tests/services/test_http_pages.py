import http.client
import logging
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from samix.errors import ConfigError
from services.http import Page, PageServer, serve_pages
from services.metrics import make_registry, serve_metrics

HOST = "127.0.0.1"


def broken_page() -> Page:
    raise RuntimeError("this page is broken")


@pytest.fixture
def server() -> Iterator[PageServer]:
    running = serve_pages({"/": lambda: Page("grüß"), "/broken": broken_page}, HOST, 0)
    yield running
    running.close()


def fetch(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Length"], response.read().decode()
    finally:
        connection.close()


def test_pages(server: PageServer):
    """A page is served whatever its query, HEAD answers its length, and an unknown path names the known ones."""
    assert fetch(server.port, "/?refresh=1") == (200, "6", "grüß")
    assert fetch(server.port, "/", "HEAD") == (200, "6", "")
    status, _, body = fetch(server.port, "/ghost")
    assert (status, body) == (404, "no page '/ghost' here; there are /, /broken\n")


def test_broken_page_does_not_end_the_server(server: PageServer, caplog: pytest.LogCaptureFixture):
    """A page that raises is logged with its reason, and the next one is served."""
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(server.port, "/broken")

    assert fetch(server.port, "/")[0] == 200
    assert "http_request_failed" in caplog.messages


def test_connections_are_bounded(server: PageServer):
    """Of callers that say nothing the oldest beyond a number are cut off, instead of taking a thread each."""
    idle = [socket.create_connection((HOST, server.port), timeout=10) for _ in range(40)]

    try:
        answers = [sock.recv(1) for sock in idle[:24]]
    finally:
        for sock in idle:
            sock.close()

    assert answers == [b""] * 24


def test_slow_callers_are_cut_off():
    """A caller has a fixed time, however often it sends a byte; then its place is free for others."""
    server = serve_pages({"/": lambda: Page("ok")}, HOST, 0, max_connection_s=0.3)
    slow = [socket.create_connection((HOST, server.port), timeout=0.05) for _ in range(32)]
    try:
        drip([*slow], 100)

        assert any(is_served(server.port) for _ in range(100))
    finally:
        for sock in slow:
            sock.close()
        server.close()


def is_served(port: int) -> bool:
    try:
        return fetch(port, "/")[0] == 200
    except (http.client.RemoteDisconnected, ConnectionError):  # a place becomes free a moment after the cut
        return False


def drip(connections: list[socket.socket], num_bytes: int) -> None:
    """Send a byte now and then on all connections, until every one is cut off."""
    for _ in range(num_bytes):
        for sock in list(connections):
            try:
                sock.send(b"x")
                if sock.recv(1) == b"":
                    connections.remove(sock)
            except TimeoutError:
                continue
            except ConnectionError:
                connections.remove(sock)
        if not connections:
            return
    raise AssertionError(f"{len(connections)} connections are still open")


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_that_are_none(port: int):
    """What is no port is refused with the value, also for metrics, which else move to a free one."""
    sentence = f"a port must lie in 0..65535, got {port}"

    with pytest.raises(ConfigError, match=sentence):
        serve_pages({}, HOST, port)
    with pytest.raises(ConfigError, match=sentence):
        serve_metrics(make_registry(), HOST, port)


def test_taken_port():
    """A port that is taken is refused with the address and the cure."""
    with socket.create_server((HOST, 0)) as taken, pytest.raises(ConfigError, match="0 takes a free one"):
        serve_pages({}, HOST, taken.getsockname()[1])


def test_unknown_host():
    """An address this machine does not have is refused with the cure."""
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0 .* this machine has no such address"):
        serve_pages({}, "192.0.2.1", 0)


def test_metrics_move_from_a_taken_port(caplog: pytest.LogCaptureFixture):
    """Metrics are served, on a free port if theirs is taken, together with those of the process."""
    registry = make_registry()
    Counter("mixer_tests", "Tests.", registry=registry).inc(3)
    with socket.create_server((HOST, 0)) as taken, caplog.at_level(logging.WARNING):
        server = serve_metrics(registry, HOST, taken.getsockname()[1])

        status, _, body = fetch(server.port, "/metrics")
        server.close()

    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert status == 200
    assert families["mixer_tests"].samples[0].value == 3
    assert {"process_cpu_seconds", "python_info", "python_gc_collections"} <= families.keys()
    assert caplog.messages == ["metrics_port_taken"]
