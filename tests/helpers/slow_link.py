"""A TCP link of limited speed between a client and a server."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

CHUNK_BYTES = 4096


@contextmanager
def slow_link(target: str, bytes_per_s: float) -> Iterator[str]:
    """Forward connections to `target`, each direction at a limited speed; yields the address of the near end."""
    host, _, port = target.rpartition(":")
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        link = _Link((host, int(port)), bytes_per_s, listener)
        link.start()
        opened.callback(link.close)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class _Link:
    def __init__(self, target: tuple[str, int], bytes_per_s: float, listener: socket.socket) -> None:
        self._target = target
        self._bytes_per_s = bytes_per_s
        self._listener = listener
        self._is_closed = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._run(self._accept)

    def close(self) -> None:
        self._is_closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _run(self, *call: object) -> None:
        target, *args = call
        thread = threading.Thread(target=target, args=args, daemon=True)  # pyright: ignore[reportArgumentType]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._sockets.append(end)
                self._run(self._forward, near, far)
                self._run(self._forward, far, near)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        free_at = time.monotonic()
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                free_at = max(free_at, time.monotonic()) + len(data) / self._bytes_per_s
                if self._is_closed.wait(max(0, free_at - time.monotonic())):
                    return
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
