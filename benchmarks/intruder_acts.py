"""What intruders do to a server, each as a process of its own: `python -m benchmarks.intruder_acts ACT ...`.

An act goes on, as fast as it can unless it says otherwise, until the process is told to end; then it prints how often
it did it.
"""

import itertools
import json
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from samix.health import code_of

_NUM_CONNECTIONS = 10_000
_CONNECTIONS_PER_S = 2_000
_NUM_SLOW = 200
_NUM_CALLS = 16
_TIMEOUT_S = 5.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_GARBAGE = b"\x16\x03\x01\x02\x00" + bytes(range(256)) * 2
_SOURCE = "127.0.0.2"  # another address than the legitimate client's
_MIX = "/samix.mixer.v1.MixerService/Mix"


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """A server, and what an intruder knows of it."""

    grpc: str
    """Address of gRPC."""
    http: str
    """Address of the pages."""
    ca: str
    """File of its authority."""
    secret: str
    """A token with role mix, for acts of somebody who has one."""


@dataclass(slots=True)
class Count:
    """What came of an act."""

    done: Counter[str] = field(default_factory=Counter)
    """How often which answer was got."""
    is_over: threading.Event = field(default_factory=threading.Event)
    """Set when it is to end."""


def connections(victim: Victim, count: Count) -> None:
    """Open 10,000 connections, 2,000 a second, and hold what stays open."""
    held, started_s = [], time.monotonic()
    for number in range(_NUM_CONNECTIONS):
        if count.is_over.wait(max(0.0, started_s + number / _CONNECTIONS_PER_S - time.monotonic())):
            break
        held.append(_connect(victim.grpc, count))
    count.is_over.wait()


def flood(victim: Victim, count: Count) -> None:
    """Open and close connections without a pause."""
    for _ in _until_over(count):
        if (opened := _connect(victim.grpc, count)) is not None:
            opened.close()


def slow_headers(victim: Victim, count: Count) -> None:
    """Hold 200 connections to the pages on which a byte of a question is sent now and then."""
    _trickle(victim.http, b"GET / HTTP/1.1\r\nx: " + b"y" * 4096, count)


def slow_handshakes(victim: Victim, count: Count) -> None:
    """Hold 200 connections to gRPC on which a byte of a handshake is sent now and then."""
    _trickle(victim.grpc, _GARBAGE, count)


def bad_handshakes(victim: Victim, count: Count) -> None:
    """Send what looks like a handshake and is none."""
    _repeat(victim.grpc, _GARBAGE, count)


def plain_text(victim: Victim, count: Count) -> None:
    """Speak plain HTTP/2 to the TLS port."""
    _repeat(victim.grpc, _PREFACE, count)


def handshakes(victim: Victim, count: Count) -> None:
    """Make whole handshakes, and hang up."""
    context = ssl.create_default_context(cafile=victim.ca)
    context.set_alpn_protocols(["h2"])
    for _ in _until_over(count):
        with suppress(OSError), _open(victim.grpc) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
            count.done["handshakes"] += 1


def no_token(victim: Victim, count: Count) -> None:
    """Ask for mixes without a token, sixteen at once."""
    _call(victim, count, itertools.repeat((bytes(150_000), ())), _NUM_CALLS)


def oversize(victim: Victim, count: Count) -> None:
    """Send messages and metadata over the limits, and pictures that claim to be huge, with a good token."""
    token = ("authorization", f"Bearer {victim.secret}")
    spoilt = [(bytes(70 << 20), (token,)), (b"", (token, ("x-long", "x" * 60_000))), (_huge_picture(), (token,))]
    _call(victim, count, itertools.cycle(spoilt), 1)


def pages(victim: Victim, count: Count) -> None:
    """Ask for pages without a token."""
    context = ssl.create_default_context(cafile=victim.ca)
    for _ in _until_over(count):
        with suppress(OSError), _open(victim.http) as plain:
            asked = context.wrap_socket(plain, server_hostname="localhost")
            asked.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            count.done[asked.recv(64).partition(b"\r\n")[0].decode()] += 1
            asked.close()


ACTS: Mapping[str, Callable[[Victim, Count], None]] = {
    act.__name__.replace("_", "-"): act
    for act in (
        connections,
        flood,
        slow_headers,
        slow_handshakes,
        bad_handshakes,
        plain_text,
        handshakes,
        no_token,
        oversize,
        pages,
    )
}
"""By name."""


def main() -> int:
    """Do one act until SIGTERM, and print what came of it."""
    name, *values = sys.argv[1:]
    victim = Victim(**dict(zip(("grpc", "http", "ca", "secret"), values, strict=True)))
    count = Count()

    def wait_for_end() -> None:
        signal.sigwait({signal.SIGTERM})
        count.is_over.set()

    # Not in a handler, which may interrupt a wait for the very event that it would set.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait_for_end, daemon=True).start()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 2 * _NUM_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    print("begun", flush=True)
    started_s = time.monotonic()
    ACTS[name](victim, count)
    print(json.dumps({"seconds": round(time.monotonic() - started_s, 2), "done": dict(count.done)}), flush=True)
    return 0


def _until_over(count: Count) -> Iterator[None]:
    while not count.is_over.is_set():
        yield


def _connect(address: str, count: Count) -> socket.socket | None:
    try:
        opened = _open(address)
    except OSError as error:
        count.done[type(error).__name__] += 1
        return None
    count.done["opened"] += 1
    return opened


def _repeat(address: str, data: bytes, count: Count) -> None:
    for _ in _until_over(count):
        with suppress(OSError), _open(address) as opened:
            opened.sendall(data)
            while opened.recv(4096):
                pass
            count.done["answered"] += 1


def _trickle(address: str, data: bytes, count: Count) -> None:
    """Send `data` byte by byte on many connections; one that is cut off is opened again."""
    held: dict[int, tuple[socket.socket, Iterator[int]]] = {}
    for number in itertools.cycle(range(_NUM_SLOW)):
        if count.is_over.wait(1 / _NUM_SLOW):
            return
        if number not in held and (opened := _connect(address, count)) is not None:
            held[number] = opened, iter(data)
        if number in held:
            connection, rest = held[number]
            try:
                connection.send(bytes([next(rest)]))
            except (OSError, StopIteration):
                del held[number]
                count.done["cut off"] += 1


def _call(
    victim: Victim, count: Count, requests: Iterator[tuple[bytes, tuple[tuple[str, str], ...]]], num_at_once: int
) -> None:
    with open(victim.ca, "rb") as file:  # noqa: PTH123 - nothing else of pathlib is needed
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
    lock = threading.Lock()
    with grpc.secure_channel(f"localhost:{_split(victim.grpc)[1]}", credentials, options) as channel:
        mix = channel.unary_unary(_MIX)

        def ask() -> None:
            for _ in _until_over(count):
                with lock:
                    message, metadata = next(requests)
                code = _code_of(mix, message, metadata)
                count.done[code] += 1

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(num_at_once)]
        for thread in threads:
            thread.start()
        count.is_over.wait()
        for thread in threads:
            thread.join(_TIMEOUT_S)


def _code_of(mix: Callable, message: bytes, metadata: tuple[tuple[str, str], ...]) -> str:
    try:
        mix(message, timeout=_TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        return code_of(error)[0].name
    return "OK"


def _huge_picture() -> bytes:
    """Make a request of two pictures that claim 65,500 x 65,500 pixels: 26 GB."""
    from samix.mixer.v1 import mixer_pb2 as pb  # here, as the other acts need nothing of ours

    head = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    picture = head + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00" + b"\x00" * 64 + b"\xff\xd9"
    request = pb.MixRequest(
        pixel_format=pb.PIXEL_FORMAT_JPEG,
        shape=[2, 3, 65_500, 65_500],
        jpeg_lengths=[len(picture)] * 2,
        lam=[0.5, 0.5],
        partner=[1, 0],
    )
    request.pixels = picture * 2
    return request.SerializeToString()


def _open(address: str) -> socket.socket:
    return socket.create_connection(_split(address), _TIMEOUT_S, source_address=(_SOURCE, 0))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
