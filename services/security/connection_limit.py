"""No address has more than its share of a server's connections: gRPC counts them all together, and not whose they are.

So the sockets of this process are looked at from beside it, where the system lists them (Linux). What is over the share
of its address is shut down, the youngest first: those who were there before an intruder of the same address stay.
"""

import contextlib
import logging
import os
import socket
import stat
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)

_FOLDER = "/proc/self/fd"
_INTERVAL_S = 0.1
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Known:
    """A socket that was seen."""

    number: int
    """How many were seen before."""
    host: str
    """Whose it is; empty where it is none of the server's connections."""


class ConnectionLimit:
    """Looks ten times a second, until it is closed. Use `limited_connections` to open one."""

    def __init__(self, port: int, max_per_host: int) -> None:
        self._port = port
        self._max_per_host = max_per_host
        self._known: dict[int, _Known] = {}  # by inode
        self._num_seen = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connection-limit", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._is_over.wait(_INTERVAL_S):
            try:
                descriptors = os.listdir(_FOLDER)  # noqa: PTH208 - ten times a second, and only names
            except OSError as error:  # no descriptor is free, which is when somebody may be over his share
                log.warning("connections_not_seen", extra={"reason": error.strerror, "cure": "ulimit -n"})
                continue
            if len(descriptors) > self._max_per_host:  # else nobody can be over it
                self._look([int(name) for name in descriptors])

    def _look(self, descriptors: list[int]) -> None:
        seen: dict[int, _Known] = {}
        of_host: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for descriptor in descriptors:
            for inode, known in self._identify(descriptor):
                seen[inode] = known
                of_host[known.host].append((known.number, descriptor))
        self._known = seen
        of_host.pop("", None)
        for host, sockets in of_host.items():
            over = sorted(sockets)[self._max_per_host :]
            if over:
                num_cut = sum(self._cut(descriptor, host) for _, descriptor in over)
                log.warning("connections_over_limit", extra={"host": host, "cut": num_cut})

    def _identify(self, descriptor: int) -> Iterator[tuple[int, _Known]]:
        """Yield inode and what is known of a socket; nothing of another file, or of one that is closed by now."""
        try:
            status = os.fstat(descriptor)
        except OSError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            return
        known = self._known.get(status.st_ino)
        if known is None:
            with _duplicate(descriptor) as connection:
                if connection is None:  # it is asked again at the next look, if it is still there
                    return
                self._num_seen += 1
                known = _Known(self._num_seen, self._host_of(connection))
        yield status.st_ino, known

    def _host_of(self, connection: socket.socket) -> str:
        """Say whose connection it is; nothing if it is none to our port."""
        try:
            if connection.getsockname()[1] == self._port:
                return connection.getpeername()[0]
        except (OSError, IndexError):  # it listens, or is a unix socket
            pass
        return ""

    def _cut(self, descriptor: int, host: str) -> bool:
        with _duplicate(descriptor) as connection:  # of which it is asked again: the number may be another's by now
            if connection is None or self._host_of(connection) != host:
                return False
            with contextlib.suppress(OSError):  # its peer has hung up
                connection.shutdown(socket.SHUT_RDWR)
            return True


@contextlib.contextmanager
def limited_connections(port: int, max_per_host: int) -> Iterator[None]:
    """Limit the connections to a TCP port of this process during the block, where the system lists them."""
    if sys.platform != "linux":
        log.warning("connections_not_limited", extra={"system": sys.platform, "cure": "serve on Linux"})
        yield
        return
    limit = ConnectionLimit(port, max_per_host)
    limit.start()
    try:
        yield
    finally:
        limit.close()


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Open a descriptor once more, so that its socket stays the same one; None if it is no socket any more.

    None as well where no descriptor is free.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        yield None
        return
    with connection:
        yield connection
