"""How a client takes memory from a server on its machine and divides it among its requests."""

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import lease_from, leasing, line_of, listening, num_descriptors, python
from serving import WAIT_S

from mixer_server.front.shared_memory import SharedMemory
from samix.client.shared_memory import SharedMemoryLease, Slot
from samix.client.sharing import Sharing
from samix.errors import InputError, MixerBroken, MixerError, MixerTimeout, MixerUnavailable
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.shared_memory import MAX_RECORD_BYTES, Answer, Hello, memory_socket

NUM_BYTES = 1000
SIZE = 1 << 20

FORKING = """
import multiprocessing, sys
from samix.client.shared_memory import SharedMemoryLease
from samix.errors import InputError

lease = SharedMemoryLease.open(sys.argv[1], 1 << 20, 20)
slot = lease.allocate(1000, 0)

def use():
    try:
        lease.allocate(1000, 0)
    except InputError as error:
        print(error, flush=True)
    slot.release()
    print(lease.is_open, flush=True)
    lease.close()

worker = multiprocessing.get_context("fork").Process(target=use)
worker.start()
worker.join(20)
print(worker.exitcode, lease.is_open, lease.allocate(1000, 0).offset)
"""

FORKED = """
import os, sys
from samix.client.shared_memory import SharedMemoryLease

lease = SharedMemoryLease.open(sys.argv[1], 1 << 20, 20)
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    print("forked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    with leasing(tmp_path) as leased:
        yield leased


@pytest.fixture
def lease(memory: SharedMemory) -> Iterator[SharedMemoryLease]:
    with lease_from(memory, SIZE) as taken:
        yield taken


def room(lease: SharedMemoryLease, num_bytes: int = NUM_BYTES, timeout_s: float = 0) -> Slot:
    slot = lease.allocate(num_bytes, timeout_s)
    assert slot
    return slot


def test_nothing_is_leased_after_closing(memory: SharedMemory, tmp_path: Path) -> None:
    """A mix that races with the closing of its connection takes no lease that nobody would end."""
    sharing = Sharing(str(tmp_path / "mixer.sock"), SIZE)
    request = Framed(pb.MixRequest(pixel_format=pb.PIXEL_FORMAT_UINT8), memoryview(bytes(NUM_BYTES)))
    sharing.close()

    placed, slot = sharing.place(request)

    assert slot is None
    assert placed is request
    assert memory.num_leases == 0


def test_pixels(memory: SharedMemory, lease: SharedMemoryLease) -> None:
    """What is copied into a slot is what the server reads at its offset."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    room(lease)
    slot = room(lease, images.nbytes)

    slot.array.reshape(images.shape)[:] = images

    assert slot.offset > 0
    assert (memory.view(lease.lease, slot.offset, images.nbytes).reshape(images.shape) == images).all()


def test_room_is_used_again(lease: SharedMemoryLease) -> None:
    """A request gets the first room that was released and is large enough, also between others."""
    first, second, _ = room(lease), room(lease), room(lease)
    second.release()
    first.release()

    assert room(lease, 2 * 1024 + 1).offset > second.offset
    assert room(lease, 2 * 1024).offset == first.offset


def test_full(lease: SharedMemoryLease) -> None:
    """There is no room beside a request that takes it all, and then there is."""
    with room(lease, SIZE):
        assert lease.allocate(1, 0) is None
        assert lease.allocate(1, 0.01) is None

    assert room(lease, SIZE).offset == 0


@pytest.mark.parametrize("num_bytes", [SIZE + 1, 2**64, 0, -1])
def test_never_room(lease: SharedMemoryLease, num_bytes: int) -> None:
    """What can never fit is not waited for."""
    assert lease.allocate(num_bytes, 1e6) is None


def test_released_twice(lease: SharedMemoryLease) -> None:
    """Room is given back once: a second release does not take it from the next request."""
    slot = room(lease)
    slot.release()
    second = room(lease)

    slot.release()

    assert room(lease).offset > second.offset


def test_waiting_for_room(lease: SharedMemoryLease) -> None:
    """A request waits until another releases its room."""
    slot = room(lease, SIZE)
    releaser = threading.Timer(0.01, slot.release)
    releaser.start()

    assert room(lease, SIZE, WAIT_S).offset == 0

    releaser.join()


def test_closed_while_waiting(lease: SharedMemoryLease) -> None:
    """A request that waits for room hears at once that the lease was closed; slots in use may still be touched."""
    slot = room(lease, SIZE)
    closer = threading.Timer(0.01, lease.close)
    closer.start()

    assert lease.allocate(1, 1e6) is None

    closer.join()
    assert not lease.is_open
    slot.array[:] = 5
    slot.release()
    lease.close()
    assert lease.allocate(1, 0) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # every example gives all room back
@given(requests=st.lists(st.tuples(st.integers(1, SIZE), st.booleans()), max_size=60))
def test_slots_never_overlap(lease: SharedMemoryLease, requests: list[tuple[int, bool]]) -> None:
    """Whatever is taken and released in whatever order, two requests never share a byte, nor a cache line."""
    slots: list[Slot] = []

    for num_bytes, is_release in requests:
        if is_release and slots:
            slots.pop(num_bytes % len(slots)).release()
        elif slot := lease.allocate(num_bytes, 0):
            slots.append(slot)

    used = sorted((slot.offset, slot.offset + slot.array.nbytes) for slot in slots)
    assert all(end <= begin and begin % 64 == 0 for (_, end), (begin, _) in pairwise(used))
    assert all(end <= SIZE for _, end in used)
    for slot in slots:
        slot.release()
    room(lease, SIZE).release()


def test_many_threads(lease: SharedMemoryLease) -> None:
    """Threads that share a lease never write over each other's pixels."""
    spoiled: list[int] = []

    def work(value: int) -> None:
        for _ in range(50):
            with room(lease, SIZE // 3, WAIT_S) as slot:
                slot.array[:] = value
                if (slot.array != value).any():
                    spoiled.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert not spoiled
    assert room(lease, SIZE)


def test_fork(memory: SharedMemory) -> None:
    """A lease that was taken before a fork is refused in the child and goes on in the parent."""
    program = [sys.executable, "-c", FORKING, memory.path]
    done = subprocess.run(program, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert done.stdout.splitlines() == [
        f"the shared memory of {memory.path} was leased before this process was forked; lease in the worker",
        "False",
        "0 True 1024",
    ], done.stderr


def test_a_fork_does_not_hold_the_lease(memory: SharedMemory) -> None:
    """A lease ends with the process that took it, also while its data loading workers live on."""
    with listening() as ear, python(FORKED, memory.path) as owner:
        assert line_of(owner) == "forked"

        owner.kill()

        ear.wait_for("shared_memory_ended")


def test_pickling(lease: SharedMemoryLease) -> None:
    """A lease cannot be handed to another process."""
    with pytest.raises(InputError, match="take one in the worker"):
        pickle.dumps(lease)


def test_nobody_listens(tmp_path: Path) -> None:
    """Without a server there is no lease, and the sentence names the path."""
    with pytest.raises(MixerUnavailable, match=str(tmp_path)):
        SharedMemoryLease.open(memory_socket(tmp_path / "mixer.sock"), SIZE, WAIT_S)


@pytest.mark.parametrize("num_bytes", [0, -1, 2**63])
def test_a_size_that_cannot_be(tmp_path: Path, num_bytes: int) -> None:
    """A size that is none is refused before anybody is asked."""
    with pytest.raises(InputError, match=f"got {num_bytes}"):
        SharedMemoryLease.open(tmp_path / "mixer.sock", num_bytes, WAIT_S)


def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory cannot be shared the client says so."""
    monkeypatch.delattr(socket, "SO_PEERCRED")

    with pytest.raises(InputError, match="send the pixels instead"):
        SharedMemoryLease.open(tmp_path / "mixer.sock", SIZE, WAIT_S)


def say(record: bytes, num_bytes: int | None = None) -> Callable[[socket.socket], None]:
    """Answer a record, with a file of that size."""

    def answer(caller: socket.socket) -> None:
        caller.recv(MAX_RECORD_BYTES)
        if num_bytes is None:
            caller.send(record)
            return
        descriptor = os.memfd_create("nonsense")
        os.truncate(descriptor, num_bytes)
        socket.send_fds(caller, [record], [descriptor])
        os.close(descriptor)

    return answer


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that answers one client in a way of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(WAIT_S)

        def serve() -> None:
            with listener.accept()[0] as caller:
                answer(caller)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(WAIT_S)


GRANT = Answer(7, SIZE).encode()


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (say(b""), MixerUnavailable, "hung up"),
        (say(b"nonsense"), MixerBroken, "no SAMIXSM1 answer"),
        (say(GRANT), MixerBroken, "gave none"),
        (say(GRANT, SIZE - 1), MixerBroken, "none or less"),
        (say(Answer(7, 0).encode(), SIZE), MixerBroken, "leased 0 bytes"),
        (say(Answer(refusal="too late").encode()), MixerUnavailable, "leases no shared memory: too late"),
        (lambda caller: caller.recv(MAX_RECORD_BYTES) and None, MixerUnavailable, "hung up"),
    ],
    ids=["empty", "nonsense", "no file", "small file", "no memory", "refusal", "hang up"],
)
def test_nonsense(
    tmp_path: Path, answer: Callable[[socket.socket], None], error: type[MixerError], sentence: str
) -> None:
    """Whatever a server answers that is no lease becomes an error, and no file stays open."""
    path = tmp_path / "memory"
    before = num_descriptors()

    with answering(path, answer), pytest.raises(error, match=sentence):
        SharedMemoryLease.open(path, SIZE, WAIT_S)

    assert num_descriptors() <= before


def test_silence(tmp_path: Path) -> None:
    """A server that does not answer is waited for as long as asked, not longer."""
    path = tmp_path / "memory"

    def wait_until_given_up(caller: socket.socket) -> None:
        caller.recv(MAX_RECORD_BYTES)
        assert caller.recv(MAX_RECORD_BYTES) == b""

    with answering(path, wait_until_given_up), pytest.raises(MixerTimeout, match=r"within 0\.05"):
        SharedMemoryLease.open(path, SIZE, 0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_server_of_another_user(tmp_path: Path) -> None:
    """Pixels are not given to a server of another user."""
    path = tmp_path / "memory"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        os.seteuid(65534)
        listener.listen()
        os.seteuid(0)

        with pytest.raises(MixerUnavailable, match="belongs to user 65534"):
            SharedMemoryLease.open(path, SIZE, WAIT_S)


@given(st.binary(max_size=2 * MAX_RECORD_BYTES))
def test_any_record(record: bytes) -> None:
    """Any bytes are read as a record or refused with a ValueError."""
    for kind in (Hello, Answer):
        for spoiled in (record, b"SAMIXSM1" + record):
            with suppress(ValueError):
                assert kind.decode(spoiled)


@given(words=st.text(max_size=20), num_words=st.integers(0, 200))
def test_long_refusals(words: str, num_words: int) -> None:
    """A refusal of any length fits into a record, and arrives whole or cut between two characters."""
    reason = words * num_words

    record = Answer(refusal=reason).encode()

    assert reason.startswith(Answer.decode(record).refusal)
    assert len(record) <= MAX_RECORD_BYTES
    assert Answer.decode(record).refusal == reason or len(record) > MAX_RECORD_BYTES - 4
