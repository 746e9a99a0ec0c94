import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from samix.errors import ConfigError
from services.addresses import check_address, reserve_port
from services.grpc_server import listen, make_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ports are shared on Linux only")

HOST = "127.0.0.1"


def make(*, shares_port: bool) -> grpc.Server:
    return make_server(ThreadPoolExecutor(1), max_message_mib=1, shares_port=shares_port)


def test_several_servers_on_a_reserved_port():
    """All servers that are told so listen on the port that was reserved."""
    with reserve_port(HOST, 0) as reserved:
        port = reserved.getsockname()[1]
        servers = [make(shares_port=True) for _ in range(2)]

        ports = [listen(server, HOST, port, shares_port=True) for server in servers]

    assert ports == [port, port]


@pytest.mark.parametrize("other", ["plain", "shared"])
def test_nobody_else_gets_a_reserved_port(other: str):
    """Another program, one of workers included, is refused the port, also as long as nobody listens there."""
    with reserve_port(HOST, 0) as reserved:
        port = reserved.getsockname()[1]

        with pytest.raises(ConfigError, match="another program listens there"):
            listen(make(shares_port=False), HOST, port) if other == "plain" else reserve_port(HOST, port)


def test_a_taken_port_cannot_be_reserved():
    """A port on which a server listens is refused with the cure."""
    with socket.create_server((HOST, 0)) as taken, pytest.raises(ConfigError, match="0 takes a free one"):
        reserve_port(HOST, taken.getsockname()[1])


def test_a_reserved_port_takes_no_connections():
    """Nobody listens through the reservation, so that no connection ends where nobody answers."""
    with reserve_port(HOST, 0) as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved.getsockname())


def test_a_reservation_ends():
    """When the reservation is closed the port is free for anybody."""
    with reserve_port(HOST, 0) as reserved:
        port = reserved.getsockname()[1]

    check_address(HOST, port)


def test_a_port_whose_connections_linger():
    """Connections of a server that ended a moment ago are no obstacle."""
    with socket.create_server((HOST, 0)) as before:
        port = before.getsockname()[1]
        with socket.create_connection((HOST, port)) as caller:
            accepted, _ = before.accept()
            accepted.close()
            assert caller.recv(1) == b""

    with reserve_port(HOST, port) as reserved:
        assert reserved.getsockname()[1] == port


def test_systems_that_share_no_ports(monkeypatch: pytest.MonkeyPatch):
    """Where one of the listeners would get all connections, sharing is refused with the cure."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(ConfigError, match="on Linux only, this is darwin; use one process"):
        reserve_port(HOST, 0)
