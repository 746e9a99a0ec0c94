"""Addresses a program listens on, and the sentence for one it cannot have."""

import errno
import socket
import sys

from samix.errors import ConfigError

_CURES = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another port (0 takes a free one)",
    errno.EACCES: "ports below 1024 need privileges; choose a higher one",
    errno.EADDRNOTAVAIL: "this machine has no such address; 127.0.0.1 serves this machine, 0.0.0.0 all networks",
}


def format_address(host: str, port: int) -> str:
    """Join host and port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port(port: int) -> None:
    """Refuse what is no port; 0 is one, the system then takes a free one.

    Raises:
        ConfigError: outside of 0..65535.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"a port must lie in 0..65535, got {port}; 0 takes a free one")


def refuse_address(host: str, port: int, error: OSError) -> ConfigError:
    """Make the error for an address that cannot be listened on."""
    cure = _CURES.get(error.errno or 0, "check host and port")
    return ConfigError(f"cannot listen on {format_address(host, port)} ({error.strerror or error}): {cure}")


def check_address(host: str, port: int) -> None:
    """Try an address by listening there for a moment.

    For servers that do not say why they cannot have an address: gRPC only tells its log.

    Raises:
        ConfigError: if it cannot be listened on.
    """
    check_port(port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server before us may linger
        try:
            trial.bind((host, port))
            trial.listen()
        except OSError as error:
            raise refuse_address(host, port, error) from error


def reserve_port(host: str, port: int) -> socket.socket:
    """Keep a port for processes that will listen there together, each with SO_REUSEPORT.

    Nothing listens through the socket that is returned: it makes sure that the port is free, finds one for 0, and keeps
    other programs away, also while none of those processes runs.

    Raises:
        ConfigError: if the address cannot be listened on, or this system does not share ports.
    """
    if sys.platform != "linux":  # elsewhere one of the listeners gets all connections
        raise ConfigError(f"several processes share a port on Linux only, this is {sys.platform}; use one process")
    check_address(host, port)
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as in `check_address`
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
        # As long as nobody listens yet, another server with SO_REUSEADDR, which is every one, could still do so.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        reserved.close()
        raise refuse_address(host, port, error) from error
    return reserved
