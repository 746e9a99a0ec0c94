"""How every gRPC server of ours is set up: sizes, threads, addresses.

A sync server: tuned, it is as fast as asyncio here, and it does not leak on cancelled streams (grpc/grpc#43360).
"""

import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from samix.errors import ConfigError
from services.addresses import check_address, format_address
from services.security.config import SecurityConfig
from services.unix_sockets import Occupant, clear_path

MIB = 1 << 20
_READ_AHEAD_BYTES = 1 << 20
"""Of each call, before its handler asks for the next message; of a message that is asked for all is read. With a
quarter of it a server takes a quarter more processor time for a batch."""
_MAX_CALLS = 256
"""Of one connection at once; our clients have a few."""
_DEFAULT_LIMITS = SecurityConfig()
_CURES = {Occupant.FILE: "choose another path", Occupant.SERVER: "stop it, or choose another path"}
_MAX_UNIX_PATH = 107 if sys.platform == "linux" else 103  # bytes, of sockaddr_un without its final zero


def make_server(
    executor: ThreadPoolExecutor,
    *,
    max_message_mib: int,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    shares_port: bool = False,
    limits: SecurityConfig = _DEFAULT_LIMITS,
) -> grpc.Server:
    """Make a server that listens nowhere yet.

    Args:
        executor: threads that answer; a method that may block must leave some of them free for health checks.
        max_message_mib: largest message it receives; gRPC refuses larger ones with RESOURCE_EXHAUSTED.
        interceptors: see every call before its handler does.
        shares_port: whether other processes listen on the same TCP port; the system then spreads connections.
        limits: of connections, and of what is said besides messages.
    """
    header_bytes = limits.max_header_kib << 10
    options = [
        # 1 is gRPC's default: a second server would share the port silently and take half of the calls.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", max_message_mib * MIB),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", _MAX_CALLS),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", round(1000 * limits.connection_idle_s)),
        ("grpc.max_connection_age_ms", round(1000 * limits.connection_age_s)),  # give or take a tenth, by gRPC
        ("grpc.max_connection_age_grace_ms", round(1000 * limits.connection_grace_s)),
        # Two limits, between which gRPC would refuse some calls by chance.
        ("grpc.max_metadata_size", header_bytes),
        ("grpc.absolute_max_metadata_size", header_bytes),
        # Left to itself gRPC reads ahead what a link could hold, which a busy server takes for many megabytes of each
        # of its connections: 200 of them took gigabytes. A fixed window is as fast on the links of one site.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients ping every 30 s; the default answer to that is GOAWAY too_many_pings.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    return grpc.server(executor, interceptors=list(interceptors), options=options)


def listen(
    server: grpc.Server,
    host: str,
    port: int,
    *,
    shares_port: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Listen on a TCP port, 0 for a free one; answers the port.

    Args:
        server: as `make_server` made it.
        host: address to listen on.
        port: port to listen on.
        shares_port: as `make_server` was told; `reserve_port` has then seen to it that nobody else is there.
        credentials: for TLS; None speaks plain text.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    if not shares_port:
        check_address(host, port)
    try:
        if credentials is None:
            return server.add_insecure_port(format_address(host, port))
        return server.add_secure_port(format_address(host, port), credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {format_address(host, port)}: {error}") from error


def listen_unix(server: grpc.Server, path: Path) -> None:
    """Listen on a unix socket that only this user may open; gRPC removes it when the server stops.

    Raises:
        ConfigError: if the path is too long, is no socket, or a living server listens there.
    """
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise ConfigError(f"unix socket path {path} is longer than {_MAX_UNIX_PATH} bytes; choose a shorter one")
    if not path.parent.is_dir():
        raise ConfigError(f"unix socket {path}: there is no directory {path.parent}; create it first")
    _clear(path)
    umask = os.umask(0o177)  # mode 0600 from the start; a chmod afterwards would leave a gap
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on unix socket {path}: {error}") from error
    finally:
        os.umask(umask)


def _clear(path: Path) -> None:
    try:
        occupant = clear_path(path, socket.SOCK_STREAM)
    except OSError as error:  # a socket of another kind, or of another user
        raise ConfigError(f"unix socket {path}: what is there is not ours ({error}); choose another path") from error
    if occupant is not None:
        raise ConfigError(f"unix socket {path}: {occupant.value}; {_CURES[occupant]}")
