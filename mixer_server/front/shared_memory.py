"""Leases memory for uint8 pixels to clients on this machine, through a unix socket beside the one of gRPC.

Only pixels upward travel this way: headers, logits, and mixed images downward, stay on gRPC. A connection is a lease:
it ends when either side hangs up, so that the kernel itself reports a client that was killed.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np

from mixer_server.front.leases import LeaseConfig, Leases
from samix.errors import BadBatch, ConfigError, MixerUnavailable
from samix.shared_memory import MAX_RECORD_BYTES, Answer, Hello, is_supported, memory_socket, peer_of
from services.unix_sockets import Occupant, clear_path

log = logging.getLogger(__name__)

_CURES = {Occupant.FILE: "remove it", Occupant.SERVER: "choose another path"}
_BACKLOG = 128  # every rank of a machine may come at once, and a full one turns them away
_MAX_PENDING = 16  # connections that have not said yet what they want
_FREE_POLL_S = 0.1  # between looks at memory that is still being read
_CLOSE_S = 5.0


class SharedMemory:
    """The door to the leases: one thread, however many clients. `start`, then `close` once."""

    _listener: socket.socket
    _selector: selectors.BaseSelector

    def __init__(
        self, config: LeaseConfig, *, unix_socket: Path, max_mib: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = memory_socket(unix_socket)
        """Where clients ask for memory."""
        self._config = config
        self._clock = clock
        self._leases = Leases(config, max_mib << 20, clock)
        self._pending: dict[socket.socket, float] = {}  # with their deadlines
        self._granted: dict[socket.socket, int] = {}  # with their leases
        self._opened = ExitStack()

    @property
    def num_leases(self) -> int:
        """Leases that clients hold."""
        return self._leases.num_leases

    @property
    def num_bytes(self) -> int:
        """Memory that is leased, and memory no longer leased that is still being read."""
        return self._leases.num_bytes

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: if this machine cannot share memory, or the socket cannot be listened on.
        """
        if not is_supported():
            raise ConfigError("shared memory needs Linux and a Python with os.memfd_create; omit --shared-memory-mib")
        with ExitStack() as opened:
            self._listener = opened.enter_context(_listen(self.path))
            opened.callback(self.path.unlink, missing_ok=True)
            self._selector = opened.enter_context(selectors.DefaultSelector())
            asleep, awake = socket.socketpair()
            opened.enter_context(asleep)
            opened.enter_context(awake)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            self._selector.register(asleep, selectors.EVENT_READ)  # without an action: it ends the thread
            thread = threading.Thread(target=self._serve, name="shared-memory", daemon=True)
            thread.start()
            opened.callback(thread.join, _CLOSE_S)
            opened.callback(awake.send, b"!")
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End all leases and stop listening; memory that is being read stays until its last reader lets go of it."""
        self._opened.close()

    def view(self, lease: int, offset: int, num_bytes: int, peer: str | None = None) -> np.ndarray:
        """Look at pixels where the client has put them.

        The array itself keeps the memory mapped, see `Leases.view`: it may be read until nothing refers to it any more,
        whatever becomes of the lease or the client.

        Args:
            lease: as the client was told.
            offset: where the pixels begin, in bytes.
            num_bytes: how many there are.
            peer: who asks, in the words of `grpc.ServicerContext.peer`; None does not care.

        Returns:
            uint8 [num_bytes], read-only, no copy.

        Raises:
            MixerUnavailable: if there is no such lease (any more).
            BadBatch: if the range leaves the region, or the caller does not come through the unix socket.
        """
        if peer is not None and not peer.startswith("unix:"):
            raise BadBatch("shared memory is for callers on the server's unix socket; send the pixels instead")
        return self._leases.view(lease, offset, num_bytes)

    def _serve(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select(self._patience_s()):
                    if key.data is None:
                        return
                    key.data()
                self._reap()
        finally:  # whatever ended the thread: clients must see that nobody answers for their leases
            for connection in (self._listener, *self._pending, *self._granted):
                connection.close()
            self._leases.close()

    def _patience_s(self) -> float:
        _, idle_s = self._leases.idle()
        handshake_s = min(self._pending.values(), default=self._clock() + idle_s) - self._clock()
        busy_s = _FREE_POLL_S if self._leases.has_readers else idle_s
        return max(0, min(idle_s, handshake_s, busy_s))

    def _reap(self) -> None:
        overdue, _ = self._leases.idle()
        for connection in [connection for connection, lease in self._granted.items() if lease in overdue]:
            self._end(connection, "idle")
        for connection in [connection for connection, end_s in self._pending.items() if end_s <= self._clock()]:
            self._refuse(connection, f"no hello came within {self._config.handshake_s} s")
        # The oldest go first: whoever means it has spoken long before the others came.
        for connection in list(self._pending)[:-_MAX_PENDING]:
            self._refuse(connection, f"no hello came before those of {_MAX_PENDING} others")
        self._leases.free()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # out of file descriptors; the connection waits, and so do we instead of spinning
            log.warning("shared_memory_accept_failed", exc_info=True)
            time.sleep(_FREE_POLL_S)
            return
        connection.setblocking(False)
        process_id, user_id = peer_of(connection)
        if user_id != os.geteuid():
            log.warning("shared_memory_stranger", extra={"client_process": process_id, "client_user": user_id})
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, partial(self._greet, connection))
        self._pending[connection] = self._clock() + self._config.handshake_s

    def _greet(self, connection: socket.socket) -> None:
        try:
            hello = Hello.decode(connection.recv(MAX_RECORD_BYTES))
            lease, num_bytes, descriptor = self._leases.grant(hello.num_bytes)
        except (MixerUnavailable, ValueError) as error:
            self._refuse(connection, str(error))
            return
        except OSError:
            self._refuse(connection, "the connection failed")
            return
        del self._pending[connection]
        self._granted[connection] = lease
        self._selector.modify(connection, selectors.EVENT_READ, partial(self._end, connection, "closed"))
        log.info("shared_memory_leased", extra={"client_process": peer_of(connection)[0], "bytes": num_bytes})
        try:
            socket.send_fds(connection, [Answer(lease, num_bytes).encode()], [descriptor])
        except OSError:  # it hung up
            self._end(connection, "unclaimed")

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        del self._pending[connection]
        log.warning("shared_memory_refused", extra={"client_process": peer_of(connection)[0], "reason": reason})
        with suppress(OSError):  # nobody listens
            connection.send(Answer(refusal=reason).encode())
        self._hang_up(connection)

    def _end(self, connection: socket.socket, reason: str) -> None:
        process_id, _ = peer_of(connection)
        self._hang_up(connection)
        self._leases.end(self._granted.pop(connection))
        log.info("shared_memory_ended", extra={"client_process": process_id, "reason": reason})

    def _hang_up(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _clear(path)
        listener.bind(str(path))
        path.chmod(0o600)  # no gap: until `listen`, every connection is refused
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot lease shared memory on {path}: {error}; choose another --unix-socket") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    occupant = clear_path(path, socket.SOCK_SEQPACKET)
    if occupant is not None:
        raise ConfigError(f"cannot lease shared memory on {path}: {occupant.value}; {_CURES[occupant]}")
