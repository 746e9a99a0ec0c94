"""The open connections of an HTTP server: few, each for a bounded time, and no caller has them all.

Who opens many and says nothing loses his oldest to his newest: a probe of the same machine, which speaks at once, is
answered all the same.
"""

import contextlib
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass

MAX_CONNECTIONS = 64
MAX_PER_PEER = 16


@dataclass(kw_only=True, slots=True, eq=False)
class _Open:
    connection: socket.socket
    peer: str
    deadline_s: float
    is_silent: bool = True
    is_cut: bool = False


class Connections:
    """Knows those that are open, and cuts them off. Safe for threads."""

    def __init__(self, max_connection_s: float, max_silence_s: float) -> None:
        """Bound connections.

        Args:
            max_connection_s: longest that one may last, in seconds.
            max_silence_s: longest until its question is there, in seconds.
        """
        self._max_connection_s = max_connection_s
        self._max_silence_s = max_silence_s
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _Open] = {}  # first come first

    def admit(self, connection: socket.socket, peer: str) -> bool:
        """Take a new connection, in place of a silent one if there are too many; False if there is no room."""
        with self._lock:
            counts = Counter(entry.peer for entry in self._open.values() if not entry.is_cut)
            if counts[peer] >= MAX_PER_PEER and not self._cut_silent(peer):
                return False
            if counts.total() >= MAX_CONNECTIONS and not self._cut_silent(counts.most_common(1)[0][0]):
                return False
            deadline_s = time.monotonic() + min(self._max_silence_s, self._max_connection_s)
            self._open[connection] = _Open(connection=connection, peer=peer, deadline_s=deadline_s)
        return True

    def note_question(self, connection: socket.socket) -> None:
        """Hear that a connection has asked; it now has the time that is left for the answer."""
        with self._lock:
            entry = self._open.get(connection)
            if entry is not None and entry.is_silent:
                entry.is_silent = False
                entry.deadline_s += self._max_connection_s - min(self._max_silence_s, self._max_connection_s)

    def forget(self, connection: socket.socket) -> None:
        """Hear that a connection is about to be closed; before its descriptor belongs to another."""
        with self._lock:
            self._open.pop(connection, None)

    def cut_late(self) -> None:
        """Cut off what is over its time; to be called now and then."""
        # A timeout of the socket would bound each read, and a caller that sends a byte now and then make many of them.
        now_s = time.monotonic()
        with self._lock:
            for entry in self._open.values():
                if entry.deadline_s <= now_s:
                    _cut(entry)

    def _cut_silent(self, peer: str) -> bool:
        for entry in self._open.values():
            if entry.peer == peer and entry.is_silent and not entry.is_cut:
                _cut(entry)
                return True
        return False


def _cut(entry: _Open) -> None:
    entry.is_cut = True
    with contextlib.suppress(OSError):  # the caller has hung up itself
        # Not that of an SSLSocket, which would first turn it into one that sends in the clear.
        socket.socket.shutdown(entry.connection, socket.SHUT_RDWR)
