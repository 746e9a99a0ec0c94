"""Memory that the server leases to clients on its machine, and what becomes of it."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from memory import (
    Ear,
    answer_to,
    call,
    hung_up,
    lease_from,
    leasing,
    line_of,
    listening,
    make_caller,
    no_descriptors_left,
    num_descriptors,
    python,
)
from prometheus_client import CollectorRegistry
from serving import WAIT_S

from mixer_server.config import ServerConfig
from mixer_server.front.leases import LeaseConfig, Leases
from mixer_server.front.shared_memory import SharedMemory
from mixer_server.metrics import MixerMetrics
from samix.errors import BadBatch, ConfigError, MixerUnavailable
from samix.shared_memory import MAX_RECORD_BYTES, Answer, Hello, memory_socket

MIB = 1 << 20
NUM_BYTES = 1000

CLIENT = """
import sys
from samix.client.shared_memory import SharedMemoryLease

lease = SharedMemoryLease.open(sys.argv[1], 1 << 20, 20)
slots = [lease.allocate(1000, 0), lease.allocate(1000, 0)]
for value, slot in enumerate(slots):
    slot.array[:] = value + 7
print(lease.lease, slots[1].offset, flush=True)
sys.stdin.readline()
"""

STRANGER = """
import os, socket, sys

os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
caller.settimeout(20)
try:
    caller.connect("mixer.sock.memory")
    print("connected", caller.recv(1000))
except PermissionError:
    print("not permitted")
"""

READING = """
import sys
from pathlib import Path
from mixer_server.front.leases import LeaseConfig
from mixer_server.front.shared_memory import SharedMemory
from samix.client.shared_memory import SharedMemoryLease

memory = SharedMemory(LeaseConfig(), unix_socket=Path(sys.argv[1]) / "mixer.sock", max_mib=4)
memory.start()
lease = SharedMemoryLease.open(memory.path, 1 << 20, 20)
slot = lease.allocate(1000, 0)
slot.array[:] = 3
job = memory.view(lease.lease, slot.offset, 1000).reshape(2, 500)[1]
del slot
lease.close()
SharedMemoryLease.open(memory.path, 1, 20).close()  # answered after the first lease has ended
print(job.sum(), memory.num_bytes >= 1 << 20)
memory.close()
print(job.sum())
"""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    with leasing(tmp_path) as leased:
        yield leased


@pytest.fixture
def ear() -> Iterator[Ear]:
    with listening() as listener:
        yield listener


def test_pixels_of_another_process(memory: SharedMemory) -> None:
    """The server sees what a client in another process has put into its slots."""
    with python(CLIENT, memory.path) as client:
        lease, offset = map(int, line_of(client).split())

        pixels = memory.view(lease, offset, NUM_BYTES, peer="unix:")

        assert pixels.dtype == np.uint8
        assert (pixels == 8).all()
        assert (memory.view(lease, 0, NUM_BYTES) == 7).all()


def test_the_server_cannot_write(memory: SharedMemory) -> None:
    """What the server gets to see is read-only."""
    with lease_from(memory) as lease, pytest.raises(ValueError, match="read-only"):
        memory.view(lease.lease, 0, NUM_BYTES)[0] = 1


def test_a_lease_has_no_name(tmp_path: Path) -> None:
    """Nothing appears in /dev/shm, and of the socket nothing is left."""
    before = set(Path("/dev/shm").iterdir())

    with leasing(tmp_path) as memory, lease_from(memory):
        assert set(Path("/dev/shm").iterdir()) <= before
        assert list(tmp_path.iterdir()) == [memory.path]
        assert stat.S_IMODE(memory.path.stat().st_mode) == 0o600

    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("mode", "outcome"), [(0o600, "not permitted"), (0o666, "connected b''")])
def test_another_user_is_refused(memory: SharedMemory, mode: int, outcome: str) -> None:
    """Another user can neither open the socket nor, should somebody let it, get an answer."""
    memory.path.chmod(mode)
    memory.path.parent.chmod(0o711)

    program = [sys.executable, "-c", STRANGER, memory.path.parent]
    done = subprocess.run(program, capture_output=True, text=True, timeout=WAIT_S, check=True)

    assert done.stdout.strip() == outcome
    assert memory.num_leases == 0


def test_a_killed_client_is_reaped(memory: SharedMemory, ear: Ear) -> None:
    """The lease of a client that was killed ends at once, and its memory is free again."""
    with python(CLIENT, memory.path) as client:
        lease, offset = map(int, line_of(client).split())

        client.kill()

        assert vars(ear.wait_for("shared_memory_ended"))["reason"] == "closed"
    assert memory.num_leases == memory.num_bytes == 0
    with pytest.raises(MixerUnavailable, match="take a new one"):
        memory.view(lease, offset, NUM_BYTES)


def test_an_idle_lease_is_taken_back(tmp_path: Path, ear: Ear) -> None:
    """A lease that no request uses ends, and gives its pages back though the client still maps them."""
    with leasing(tmp_path, idle_s=0.05) as memory, lease_from(memory) as lease:
        slot = lease.allocate(NUM_BYTES, 0)
        assert slot
        slot.array[:] = 1

        assert vars(ear.wait_for("shared_memory_ended"))["reason"] == "idle"

        assert not lease.is_open
        assert lease.allocate(NUM_BYTES, 0) is None
        assert not slot.array.any()


def test_a_lease_in_use_is_not_idle() -> None:
    """Every request that uses a lease puts its end off."""
    now_s = [0.0]
    leases = Leases(LeaseConfig(idle_s=10), MIB, clock=lambda: now_s[0])
    lease, _, _ = leases.grant(MIB)
    now_s[0] = 9
    leases.view(lease, 0, 1)

    now_s[0] = 18
    overdue, next_s = leases.idle()

    assert (overdue, next_s) == ([], 1)
    now_s[0] = 19
    assert leases.idle()[0] == [lease]
    leases.close()


def test_memory_that_is_read_outlives_its_lease(tmp_path: Path) -> None:
    """A pass goes on reading while the lease ends and while the server closes."""
    program = [sys.executable, "-c", READING, tmp_path]
    done = subprocess.run(program, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert (done.returncode, done.stdout.split()) == (0, ["1500", "True", "1500"]), done.stderr


def test_the_last_reader_frees_the_memory() -> None:
    """Memory counts against the budget until nobody reads it."""
    leases = Leases(LeaseConfig(), MIB)
    lease, _, _ = leases.grant(MIB)
    job = leases.view(lease, 0, NUM_BYTES).reshape(2, -1)[1]
    leases.end(lease)
    assert (leases.num_bytes, leases.has_readers) == (MIB, True)
    with pytest.raises(MixerUnavailable, match="no room"):
        leases.grant(MIB)

    del job
    leases.free()

    assert (leases.num_bytes, leases.has_readers) == (0, False)
    leases.close()


def test_room_after_the_last_reader(tmp_path: Path) -> None:
    """A new lease finds room once a pass has ended that read an old one."""
    with leasing(tmp_path, total_mib=1) as memory:
        lease = lease_from(memory)
        job = memory.view(lease.lease, 0, NUM_BYTES)
        lease.close()
        with pytest.raises(MixerUnavailable, match="no room"):
            lease_from(memory)

        del job

        with lease_from(memory) as second:
            assert second.num_bytes == MIB


@given(offset=st.integers(), num_bytes=st.integers())
@example(offset=2**64 - 1, num_bytes=2)
@example(offset=2**63 - 1, num_bytes=2**63 - 1)
@example(offset=4096, num_bytes=0)
@example(offset=4095, num_bytes=1)
@example(offset=4095, num_bytes=2)
@example(offset=-1, num_bytes=1)
def test_any_range(offset: int, num_bytes: int) -> None:
    """A range lies inside the lease or is refused, however large its numbers are."""
    leases = Leases(LeaseConfig(), MIB)
    lease, size, _ = leases.grant(1)

    if 0 <= offset < offset + num_bytes <= size:
        assert leases.view(lease, offset, num_bytes).nbytes == num_bytes
    else:
        with pytest.raises(BadBatch, match="leave the lease's 4096 bytes"):
            leases.view(lease, offset, num_bytes)
    leases.close()


@pytest.mark.parametrize("lease", [0, 1, -1, 2**63, 2**64 - 1])
def test_an_unknown_lease(memory: SharedMemory, lease: int) -> None:
    """A lease that the server never gave has no pixels."""
    with lease_from(memory), pytest.raises(MixerUnavailable, match="no such lease"):
        memory.view(lease, 0, 1)


def test_callers_from_elsewhere(memory: SharedMemory) -> None:
    """A caller through TCP cannot use a lease, even if it knows one."""
    with lease_from(memory) as lease, pytest.raises(BadBatch, match="unix socket"):
        memory.view(lease.lease, 0, NUM_BYTES, peer="ipv4:10.0.0.7:4242")


def test_a_client_cannot_resize_its_memory(memory: SharedMemory) -> None:
    """A client can neither shorten its memory, which would crash the server, nor make it grow."""
    with call(memory.path) as caller:
        caller.send(Hello(MIB).encode())
        record, (descriptor,), _, _ = socket.recv_fds(caller, MAX_RECORD_BYTES, 1)
        try:
            for size in (0, 2 * MIB):
                with pytest.raises(PermissionError) as refusal:
                    os.ftruncate(descriptor, size)
                assert refusal.value.errno == errno.EPERM
            assert os.fstat(descriptor).st_size == Answer.decode(record).num_bytes == MIB
        finally:
            os.close(descriptor)


@pytest.mark.parametrize(
    "record",
    [b"", b"x", Hello(1).encode()[:-1], b"SAMIXSM9" + bytes(8), Hello(0).encode(), bytes(100_000)],
    ids=["empty", "short", "cut", "version", "nothing", "long"],
)
def test_garbage(memory: SharedMemory, record: bytes) -> None:
    """Whatever is no hello is refused in a sentence, and the next client gets its lease."""
    with call(memory.path) as caller:
        caller.send(record)

        answer = answer_to(caller)

        assert not answer.lease
        assert answer.refusal
        assert hung_up(caller)
    with lease_from(memory) as lease:
        assert lease.is_open


def test_a_client_that_goes_on_talking(memory: SharedMemory, ear: Ear) -> None:
    """A lease ends when its client says anything after the hello."""
    with call(memory.path) as caller:
        caller.send(Hello(MIB).encode())
        caller.send(Hello(MIB).encode())

        ear.wait_for("shared_memory_ended")

    assert memory.num_leases == 0


def test_a_client_that_says_nothing(tmp_path: Path) -> None:
    """A client that connects and is silent is refused when its time is over."""
    with leasing(tmp_path, handshake_s=0.05) as memory, call(memory.path) as caller:
        answer = answer_to(caller)

        assert "no hello came within 0.05 s" in answer.refusal
        assert hung_up(caller)


def test_many_silent_clients(memory: SharedMemory) -> None:
    """Silent clients beyond a number push out the oldest, and one that speaks is served."""
    callers = [call(memory.path) for _ in range(20)]

    with lease_from(memory) as lease:
        assert lease.is_open
        assert "16 others" in answer_to(callers[0]).refusal
    for caller in callers:
        caller.close()


def test_budget(memory: SharedMemory) -> None:
    """A lease that does not fit into what is left is refused in a sentence, and fits once another ends."""
    first = lease_from(memory, 3 * MIB)

    with pytest.raises(MixerUnavailable, match=f"no room for {2 * MIB} bytes .* {3 * MIB} of {4 * MIB} are leased"):
        lease_from(memory, 2 * MIB)

    first.close()
    with lease_from(memory, 2 * MIB) as second:
        assert memory.num_bytes == second.num_bytes == 2 * MIB


@pytest.mark.parametrize(
    ("asked", "max_mib", "given"), [(1, 2, 4096), (4097, 2, 8192), (2**63 - 1, 2, 2 * MIB), (9 * MIB, 9, 4 * MIB)]
)
def test_size(tmp_path: Path, asked: int, max_mib: int, given: int) -> None:
    """A client gets what it asks for in whole pages, at most a lease's share and at most everything."""
    with leasing(tmp_path, max_mib=max_mib) as memory, lease_from(memory, asked) as lease:
        assert lease.num_bytes == given


def test_number_of_leases(tmp_path: Path) -> None:
    """More clients than configured are refused in a sentence."""
    taken = pytest.raises(MixerUnavailable, match="all 2 leases of shared memory are taken")

    with leasing(tmp_path, max_leases=2) as memory, lease_from(memory), lease_from(memory), taken:
        lease_from(memory)


def test_a_whole_machine_at_once(tmp_path: Path) -> None:
    """Many clients that come in the same moment all get their leases."""
    with leasing(tmp_path, total_mib=64) as memory, ThreadPoolExecutor(64) as pool:
        leases = list(pool.map(lambda _: lease_from(memory), range(64)))

        assert len({lease.lease for lease in leases}) == memory.num_leases == 64
        for lease in leases:
            lease.close()


def test_a_connection_without_a_file_descriptor(memory: SharedMemory, ear: Ear) -> None:
    """A client waits while the server cannot open anything, and is served when it can again."""
    with make_caller() as caller:
        with no_descriptors_left():
            caller.connect(str(memory.path))
            ear.wait_for("shared_memory_accept_failed")

        caller.send(Hello(MIB).encode())

        assert answer_to(caller).num_bytes == MIB


def test_a_lease_without_a_file_descriptor(memory: SharedMemory, ear: Ear) -> None:
    """A client is refused in a sentence if the machine has no more to give."""
    with call(memory.path) as caller:
        lease_from(memory).close()  # who came later is answered, so this caller has been accepted
        ear.wait_for("shared_memory_ended")

        with no_descriptors_left():
            caller.send(Hello(MIB).encode())
            answer = answer_to(caller)

    assert "Too many open files" in answer.refusal
    assert memory.num_bytes == 0


def test_nothing_leaks(memory: SharedMemory, ear: Ear) -> None:
    """A hundred leases leave no file descriptor behind."""
    lease_from(memory).close()
    ear.wait_for("shared_memory_ended")
    before = num_descriptors()

    for _ in range(100):
        lease_from(memory).close()
        ear.wait_for("shared_memory_ended")

    assert num_descriptors() <= before


def test_close_leaks_nothing(tmp_path: Path) -> None:
    """A server that closes with clients, silent ones and readers gives all its file descriptors back."""
    before = num_descriptors()

    with leasing(tmp_path) as memory, lease_from(memory) as lease, lease_from(memory), call(memory.path):
        job = memory.view(lease.lease, 0, NUM_BYTES)
        memory.close()
    del job, lease

    assert num_descriptors() <= before


def test_restart(tmp_path: Path) -> None:
    """Clients see that a server went away, and lease from its successor on the same socket."""
    with leasing(tmp_path) as memory:
        lease = lease_from(memory)
        assert lease.is_open

    assert not lease.is_open
    assert lease.allocate(NUM_BYTES, WAIT_S) is None
    with leasing(tmp_path) as memory, lease_from(memory) as second:
        assert second.is_open
        with pytest.raises(MixerUnavailable):
            memory.view(lease.lease, 0, NUM_BYTES)
    lease.close()


def test_the_socket_of_a_dead_server(tmp_path: Path) -> None:
    """A socket that a killed server left behind is replaced; that of a living one is not, and no other file either."""
    path = memory_socket(tmp_path / "mixer.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))

    with leasing(tmp_path) as memory:
        with pytest.raises(ConfigError, match="another server listens there"), leasing(tmp_path):
            pass
        with lease_from(memory) as lease:
            assert lease.is_open
    path.write_text("not a socket")
    with pytest.raises(ConfigError, match="a file of that name is there"), leasing(tmp_path):
        pass
    assert path.read_text() == "not a socket"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    """A path that is too long or has no folder is refused in a sentence."""
    for folder in (tmp_path / ("x" * 120), tmp_path / "missing"):
        with pytest.raises(ConfigError, match="choose another --unix-socket"), leasing(folder):
            pass


def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory cannot be shared the server says so at start."""
    monkeypatch.delattr(os, "memfd_create")

    with pytest.raises(ConfigError, match="omit --shared-memory-mib"), leasing(tmp_path):
        pass


@pytest.mark.parametrize("name", ["max_mib", "max_leases", "idle_s", "handshake_s"])
def test_settings_of_leases(name: str) -> None:
    """Limits of leases are positive."""
    with pytest.raises(ConfigError, match=f"leases.{name.replace('_', '-')} must be positive"):
        LeaseConfig(**{name: 0})


def test_settings_of_the_server() -> None:
    """Memory is leased beside a unix socket only."""
    with pytest.raises(ConfigError, match="give --unix-socket PATH"):
        ServerConfig(mixers=(), shared_memory_mib=64)
    with pytest.raises(ConfigError, match="must be >= 0, got -1"):
        ServerConfig(mixers=(), shared_memory_mib=-1)
    assert ServerConfig(mixers=(), shared_memory_mib=64, unix_socket=Path("/tmp/mixer.sock")).shared_memory_mib == 64


def test_metrics(memory: SharedMemory) -> None:
    """The metrics tell how many clients hold how much."""
    registry = CollectorRegistry()
    MixerMetrics(registry).watch_shared_memory(memory)

    with lease_from(memory, MIB), lease_from(memory, 2 * MIB):
        assert registry.get_sample_value("mixer_shared_memory_leases") == 2
        assert registry.get_sample_value("mixer_shared_memory_bytes") == 3 * MIB
