"""The door to shared memory, and requests that name what lies behind it: nothing outside a lease is ever read."""

import math
import random
import socket
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from child_server import ChildServer
from framing import whole
from fuzzing import ANSWER_S, REFUSALS, Code, Tally, Volley, check_sentence, fuzz, generator
from mutations import LARGE_NUMBERS, spoil
from serving import random_call

from samix.client.shared_memory import SharedMemoryLease
from samix.mixer.v1 import mixer_pb2 as pb
from samix.shared_memory import MAX_RECORD_BYTES, Answer, Hello, memory_socket
from samix.wire import encode_request

PATH = ("shared memory", 0.1)

LEASE_BYTES = 1 << 16
REQUEST = whole(encode_request(random_call(2, side=16)))
NUM_BYTES = len(REQUEST.pixels)
_MAX_SENT_BYTES = 50_000  # the kernel itself refuses records that are much larger


@pytest.fixture
def lease(server: ChildServer) -> Iterator[SharedMemoryLease]:
    """Memory that is leased while all others ask for it."""
    held = SharedMemoryLease.open(memory_socket(Path(server.addresses["unix"])), LEASE_BYTES, ANSWER_S)
    yield held
    held.close()


class Door:
    """Speaks to the socket that leases memory, as no client of ours does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def knock(self, number: int, rng: random.Random) -> str:
        """Send records; returns what came of it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.settimeout(ANSWER_S)
            caller.connect(str(self._path))
            with suppress(BrokenPipeError, ConnectionResetError):  # it hangs up as soon as it has heard enough
                for record in self._records(rng):
                    self._send(caller, record, rng)
            if rng.random() < 0.1:
                return "hung up"
            return self._answer(caller, number)

    def _records(self, rng: random.Random) -> list[bytes]:
        hello = Hello(rng.choice(LARGE_NUMBERS)).encode()
        if rng.random() < 0.6:
            hello = spoil(hello, rng)
        many = [(hello * 100)[:_MAX_SENT_BYTES]]
        return rng.choice(([hello], [hello], [hello], [hello, hello], [hello, b"x"], many, [b""], []))

    def _send(self, caller: socket.socket, record: bytes, rng: random.Random) -> None:
        if rng.random() < 0.2:  # with descriptors that nobody asked for
            rights = array("i", [caller.fileno()] * rng.randint(1, 20))
            caller.sendmsg([record], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            caller.send(record)

    def _answer(self, caller: socket.socket, number: int) -> str:
        try:
            record, descriptors, _, _ = socket.recv_fds(caller, MAX_RECORD_BYTES, 4)
        except ConnectionResetError:
            return "hung up on"
        for descriptor in descriptors:
            socket.close(descriptor)
        if not record:
            return "hung up on"
        answer = Answer.decode(record)
        assert bool(answer.lease) == bool(descriptors) == (not answer.refusal), f"input {number}: {answer}"
        if answer.lease:
            assert 0 < answer.num_bytes <= 8 << 20
            return "leased"
        check_sentence(answer.refusal, f"input {number}")
        return "refused"


class Requests:
    """Draws requests whose pixels lie in leased memory, or should."""

    def __init__(self, lease: SharedMemoryLease) -> None:
        self._lease = lease

    def draw(self, rng: random.Random) -> pb.MixRequest:
        request = pb.MixRequest()
        request.CopyFrom(REQUEST)
        request.pixels = b"" if rng.random() < 0.9 else request.pixels
        number, size = self._lease.lease, self._lease.num_bytes
        request.shared.lease = rng.choice((number,) * 8 + (number ^ 1, number + 1, *LARGE_NUMBERS))
        ends = (0, 1, size - NUM_BYTES - 1, size - NUM_BYTES, size - NUM_BYTES + 1, size - 1, size)
        wrapped = (2**64 - NUM_BYTES, 2**64 - NUM_BYTES + 1, 2**64 - size)
        request.shared.offset = rng.choice((*ends, *ends, *wrapped, *LARGE_NUMBERS))
        if rng.random() < 0.2:
            request.pixel_format = rng.choice((pb.PIXEL_FORMAT_FLOAT32, pb.PIXEL_FORMAT_JPEG))
        if rng.random() < 0.2:
            request.shape[:] = rng.choice(((2, 3, 2**31, 2**31), (2**32 - 1, 3, 1, 1), (1, 3, 16, 16), (2, 3, 64, 64)))
        return request

    def is_sound(self, request: pb.MixRequest) -> bool:
        """Tell whether a request names pixels inside the lease, and everything else of it is right."""
        return (
            not request.pixels
            and request.pixel_format == pb.PIXEL_FORMAT_UINT8
            and request.shared.lease == self._lease.lease
            and request.shape[0] == 2  # as many as there are shares
            and request.shared.offset + math.prod(request.shape) <= self._lease.num_bytes
        )


@pytest.mark.timeout(0)
def test_leases(
    server: ChildServer,
    channel: grpc.Channel,
    unix_channel: grpc.Channel,
    lease: SharedMemoryLease,
    ask_well: Callable[[], bytes],
    tally: Tally,
):
    """Exactly the requests that stay inside a lease of the same socket are answered; all else is refused in time."""
    path = "/samix.mixer.v1.MixerService/Mix"
    here, elsewhere = unix_channel.unary_unary(path).future, channel.unary_unary(path).future
    door, requests, volley = Door(memory_socket(Path(server.addresses["unix"]))), Requests(lease), Volley(tally)
    refused = (REFUSALS | {Code.UNAVAILABLE}) - {Code.OK}

    def send(number: int) -> None:
        rng = generator(tally.path, number)
        if rng.random() < 0.3:
            started_s = time.perf_counter()
            tally.count(door.knock(number, rng), time.perf_counter() - started_s)
            return
        request, is_near = requests.draw(rng), rng.random() < 0.9
        may_end = frozenset({Code.OK}) if is_near and requests.is_sound(request) else refused
        volley.fire(number, request.SerializeToString(), here if is_near else elsewhere, may_end=may_end)

    fuzz(server, tally, ask_well, send, volley.land)
