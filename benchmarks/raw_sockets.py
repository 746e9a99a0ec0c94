"""The limit that a transport is measured against: the same bytes over bare sockets, one exchange after another.

Blocking sockets, preallocated buffers, nothing parsed, nothing checked; `python -m benchmarks.raw_sockets` serves.
"""

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import bind_child
from services.malloc import tune_malloc
from trainer.children import start_child

_SIZES = struct.Struct("<QQ")  # bytes up and down of each exchange; the client says them first
_READY_S = 60.0
_TIMEOUT_S = 30.0
_AHEAD = 4
"""Batches that a stream's server may send before any of them was received."""


@contextmanager
def raw_server(folder: Path, core: int | None) -> Iterator[dict[str, str]]:
    """Run the server in a process of its own; yields where it listens, by `tcp` and `unix`."""
    path = folder / "raw.sock"
    with start_child("benchmarks.raw_sockets", [str(path)], folder / "raw.log") as server:
        bind_child(server.process_id, core)
        port = server.wait_for_line("ready ", _READY_S).split()[1]
        yield {"tcp": f"127.0.0.1:{port}", "unix": str(path)}


def measure_raw(target: str, up: int, down: int, seconds: float) -> float:
    """Exchange `up` for `down` bytes over and over; answers the seconds that one exchange takes."""
    sent, received = memoryview(os.urandom(up)), memoryview(bytearray(down))
    with _connect(target) as connection:
        connection.sendall(_SIZES.pack(up, down))
        _exchange(connection, sent, received)
        count, started_s = 0, time.perf_counter()
        while time.perf_counter() - started_s < seconds:
            _exchange(connection, sent, received)
            count += 1
        return (time.perf_counter() - started_s) / count


def measure_raw_stream(target: str, down: int, seconds: float) -> float:
    """Receive `down` bytes over and over, one way: the server is always some batches ahead, never waiting for us.

    Returns:
        Seconds for each `down` bytes.
    """
    received = memoryview(bytearray(down))
    with _connect(target) as connection:
        connection.sendall(_SIZES.pack(1, down) + bytes(_AHEAD))  # each byte lets it send once more
        count, started_s = -1, time.perf_counter()
        while count < 0 or time.perf_counter() - started_s < seconds:
            assert _receive(connection, received), "the raw server hung up"
            connection.sendall(b"\0")
            count += 1
            started_s = time.perf_counter() if count == 0 else started_s  # behind the first, which warms up
        return (time.perf_counter() - started_s) / count


def _exchange(connection: socket.socket, sent: memoryview, received: memoryview) -> None:
    connection.sendall(sent)
    assert _receive(connection, received), "the raw server hung up"


def _connect(target: str) -> socket.socket:
    if ":" not in target:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT_S)
        connection.connect(target)
        return connection
    host, port = target.split(":")
    connection = socket.create_connection((host, int(port)), _TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)  # blocking, which is the fastest
    return connection


def _receive(connection: socket.socket, into: memoryview) -> bool:
    filled = 0
    while filled < len(into):
        count = connection.recv_into(into[filled:])
        if count == 0:
            return False
        filled += count
    return True


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sizes = memoryview(bytearray(_SIZES.size))
        if not _receive(connection, sizes):
            return
        up, down = _SIZES.unpack(sizes)
        received, sent = memoryview(bytearray(up)), memoryview(os.urandom(down))
        while _receive(connection, received):
            connection.sendall(sent)


def main() -> None:
    """Listen on a free TCP port and on the unix socket that is named, until killed."""
    tune_malloc()
    network, local = socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX)
    network.bind(("127.0.0.1", 0))
    local.bind(sys.argv[1])
    for listener in (network, local):
        listener.listen()
    print(f"ready {network.getsockname()[1]}", flush=True)
    threading.Thread(target=_serve, args=(local,), daemon=True).start()
    _serve(network)


if __name__ == "__main__":
    main()
